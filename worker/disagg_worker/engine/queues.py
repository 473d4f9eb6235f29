"""PURE: The queues of the engine: admission, the choice of the next step, and preemption.

The engine holds its lock during each call.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence as Many
from dataclasses import replace

from disagg_protocol.errors import NoCapacity
from disagg_wire.room import Room
from disagg_worker.engine.block_pool import Holding, State, blocks_for
from disagg_worker.engine.deadlines import PATIENCE_S, Timing, Waiting, by_due
from disagg_worker.engine.decode_scheduler import Capacity, blocks_to_hold, check_length, start_blocks, victim
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.kv_store import KvStore
from disagg_worker.engine.prefill_limit import KnownRoom, limited
from disagg_worker.engine.prefill_pace import UNKNOWN, Pace
from disagg_worker.engine.prefill_scheduler import FairShares, PrefillRules, plan_prefill
from disagg_worker.engine.prefix_hash import PrefixNames
from disagg_worker.engine.sequence import Sequence

Work = list[tuple[Sequence, int]]
_NEXT = -1


class _Coming:
    """The names of blocks that their holders have not computed yet, and the turn in which they will
    be: `_NEXT` for the next batch, or the holder's place in the order of the waiting prompts.

    `places` is empty if no prompt has a due time; sequences that have begun then go on soon.
    """

    def __init__(self, holders: Many[Sequence], batch: set[int], places: dict[int, int]) -> None:
        self._places = places
        self._when: dict[bytes, int] = {}
        turns = [(_NEXT if s.key in batch else places.get(s.key, _NEXT), s) for s in holders]
        # A sooner turn replaces a later one.
        for turn, s in sorted(turns, key=lambda t: t[0], reverse=True):
            self._when.update(dict.fromkeys(s.names[s.registered :], turn))

    def begun(self, s: Sequence) -> None:
        """Note that a sequence is in the next batch."""
        self._when.update(dict.fromkeys(s.names[s.registered :], _NEXT))

    def before(self, s: Sequence, name: bytes) -> bool:
        """Return whether another sequence will have computed the block before the turn of s."""
        turn = self._when.get(name)
        return turn is not None and turn < self._places.get(s.key, turn + 1)


class Queues:
    """The sequences of the engine, by what they wait for.

    `waiting` is in order of arrival, so preempted sequences are first. `running` sequences are
    decoded together. `prefilling` are those waiting sequences whose step runs now. `committed`
    counts the sequences to decode: those that run, wait for it or have a reservation. `starved`
    says whether one that runs lacked a block last time, because all others are leased.
    """

    def __init__(self, config: EngineConfig, max_model_len: int, store: KvStore, names: PrefixNames | None) -> None:
        self._config = config
        self._size = config.block_size_tokens
        self._max_len = max_model_len
        self._store = store
        self._names = names
        self._shares = FairShares()
        self._aged_led: dict[str, int] = {}
        self._rules = PrefillRules(
            config.max_batch_tokens,
            config.prefill_wait_s,
            config.prefill_utilisation,
            config.max_running,
            config.saturating_tokens,
        )
        # While sequences run, a batch larger than needed to saturate the processor would only make
        # them wait longer.
        self._rules_beside_decode = replace(
            self._rules, budget_tokens=min(config.max_batch_tokens, config.saturating_tokens)
        )
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.prefilling: set[Sequence] = set()
        self.committed = 0
        self.decode_room: KnownRoom | None = None
        self.starved = False
        self.preemptions = 0
        self.cached_tokens = 0
        self.prompt_tokens = 0
        self.rest_tokens = 0

    # ---- Admission ----

    def _capacity(self) -> Capacity:
        """Return the capacity for further requests.

        A block counts as free if it is neither promised to a waiting sequence nor one of those that
        the running sequences may need next (one each).
        """
        c, pool = self._config, self._store.pool
        promised = sum(self._needed(s) for s in self.waiting if s.holding is None and not s.hands_over)
        free = self._store.free - promised - len(self.running)
        return Capacity(
            self._size, pool.total, free, self.committed, c.max_running, self._max_len, c.growth_reserve_tokens
        )

    def room(self, step_s: float) -> Room:
        """Return the room for reservations now."""
        c = self._capacity()
        free, seats = max(0, c.blocks_free), max(0, c.max_running - c.committed)
        return Room(free * self._size, c.blocks_total * self._size, seats, c.max_running, step_s)

    def _needed(self, s: Sequence) -> int:
        """Return the number of blocks that a waiting sequence starts with."""
        if s.hands_over:
            return blocks_for(len(s.tokens), self._size)
        return start_blocks(len(s.tokens), s.most_tokens(self._max_len), self._config.growth_reserve_tokens, self._size)

    def _check_place(self) -> None:
        if len(self.waiting) >= self._config.max_waiting:
            raise NoCapacity(f"{len(self.waiting)} requests wait, max_waiting is {self._config.max_waiting}")

    def add_prefill(self, s: Sequence) -> None:
        """Queue a prompt whose KV is to be handed over. Raises NoCapacity or InvalidInput."""
        check_length(len(s.tokens), self._capacity())
        self._check_place()
        self.waiting.append(s)

    def add_local(self, s: Sequence) -> None:
        """Queue a prompt that is to be decoded here too. Raises NoCapacity or InvalidInput."""
        blocks_to_hold(len(s.tokens), s.most_tokens(self._max_len), self._capacity())
        self._check_place()
        self.committed += 1
        self.waiting.append(s)

    def check_rest(self, tokens: int, names: Many[bytes], most_missing: int) -> None:
        """Check that the start of a prompt is in the pool, by the `names` of its blocks, that at
        most `most_missing` of its tokens are missing, and that they need not wait for others.

        Raises NoCapacity: otherwise they are better computed elsewhere.
        """
        missing = tokens - self._store.leading(names) * self._size
        if missing > most_missing or missing == tokens:
            raise NoCapacity(f"{missing} of {tokens} tokens are missing here")
        ahead = sum(len(s.tokens) - s.computed for s in self.waiting)
        if ahead and ahead + missing > self._rules_beside_decode.budget_tokens:
            raise NoCapacity(f"{ahead} tokens are to be computed before these {missing}")

    def add_rest(self, s: Sequence, names: Many[bytes], most_missing: int) -> None:
        """Queue a prompt of which only the rest is computed, as `check_rest` has it, and hold its
        blocks at once. Raises NoCapacity or InvalidInput.
        """
        self.check_rest(len(s.tokens), names, most_missing)
        self._check_place()
        holding, held = self.reserve(len(s.tokens), s.most_tokens(self._max_len), names)
        self._store.pool.convert(holding, State.USED)
        s.holding, s.registered, s.computed, s.is_rest = holding, held, held * self._size, True
        s.cached_tokens = min(s.computed, s.prompt_tokens)
        self.cached_tokens += s.cached_tokens
        self.waiting.append(s)

    def start_names(self, tokens: Many[int], tenant: str) -> list[bytes]:
        """Return the names of the full blocks before the last token, which is always computed."""
        names: list[bytes] = []
        if self._names is not None and tokens:
            self._names.extend(names, tokens[:-1], tenant)
        return names

    def reserve(self, tokens: int, max_total_tokens: int, names: Many[bytes] = ()) -> tuple[Holding, int]:
        """Hold blocks for KV that is to arrive, and return them with the number of the first ones
        that have the content of `names` already. Raises NoCapacity or InvalidInput.
        """
        c = self._capacity()
        # What others own too takes no free block.
        c = replace(c, blocks_free=c.blocks_free + self._store.owned(names))
        holding, held = self._store.lease(names, blocks_to_hold(tokens, max_total_tokens, c))
        self.committed += 1
        return holding, held

    def unreserve(self, holding: Holding) -> None:
        self._store.pool.free(holding)
        self.committed -= 1

    def join(self, s: Sequence, holding: Holding, held_blocks: int = 0) -> None:
        """Start to decode a sequence whose KV has arrived in a reservation, except for what was
        there.
        """
        self._store.pool.convert(holding, State.USED)
        s.holding = holding
        s.computed = len(s.tokens) - 1
        s.cached_tokens, s.told_cached = 0, True  # Its prompt was computed elsewhere.
        s.registered = held_blocks
        self.cached_tokens += held_blocks * self._size
        self.running.append(s)
        self.note_computed(s)

    # ---- The next step ----

    def take_decode(self) -> list[Sequence]:
        """Return the running sequences that have a block and a mask for their next token, oldest
        first.

        Other sequences are preempted if necessary.
        """
        able = []
        self.starved = False
        for s in sorted(self.running, key=lambda s: s.key):
            if s in self.running and s.may_step and self._grow(s):
                able.append(s)
        return able

    def _grow(self, s: Sequence) -> bool:
        assert s.holding is not None, "a running sequence holds blocks"
        if s.computed < len(s.holding.blocks) * self._size:
            return True
        while not self._store.free:
            holders = {h.key: h for h in (*self.running, *self.waiting) if h.holding is not None and not h.hands_over}
            newest = victim(s.key, list(holders))
            if newest is None:
                self.starved = True
                return False  # Blocks are leased to transfers; the end of one wakes the loop.
            self._preempt(holders[newest])
        self._store.pool.extend(s.holding, 1)
        return True

    def _preempt(self, s: Sequence) -> None:
        """Put a sequence back to its place in the queue, before all that came later.

        Its KV stays in the cache as long as there is room.
        """
        self.preemptions += 1
        assert s.holding is not None, "whoever gives blocks up holds some"
        self._store.pool.free(s.holding)
        s.holding, s.computed, s.registered, s.is_rest = None, 0, 0, False
        if s in self.running:
            self.running.remove(s)
            self.waiting.append(s)
            self.waiting.sort(key=lambda s: s.key)

    def _rules_now(self, now_s: float) -> PrefillRules:
        return (
            self._rules_beside_decode
            if self.running
            else limited(self._rules, self.decode_room, now_s, self._config.decode_step_target_s)
        )

    def prefill_limit_tokens(self, now_s: float) -> int:
        """Return the number of tokens that the next prefill batch may hold."""
        return self._rules_now(now_s).budget_tokens

    @property
    def prefill_most_tokens(self) -> int:
        """The number of tokens that a prefill batch may hold while decode has room."""
        return self._rules.budget_tokens

    def take_prefill(self, now_s: float, pace: Pace = UNKNOWN) -> tuple[Work, float | None]:
        """Return the next prefill batch, whose sequences hold their blocks, and the time at which
        to ask again if there is none now.
        """
        if not self.waiting:
            return [], None
        rules = self._rules_now(now_s)
        timing = Timing(now_s, rules.chunk_tokens, pace, self._aged_led)
        waiting = by_due([self._as_waiting(s) for s in self.waiting if s.masked], timing)
        order = self._shares.order(waiting)
        places = {w.key: i for i, w in enumerate(order)} if any(w.due_s is not None for w in order) else {}
        plan = plan_prefill(order, now_s, rules, timing)
        work = self._with_blocks(plan.batch, places)
        # If the first prompt lacks blocks, sequences that have begun may hold them, and go first.
        if plan.batch and not work:
            work = self._with_blocks(
                plan_prefill([w for w in waiting if w.started], now_s, rules, timing).batch, places
            )
        self._shares.charge([(s.share, n) for s, n in work], rules.full_tokens)
        self.prefilling = {s for s, _ in work}
        if work:
            self._note_leader(work[0][0], now_s)
        return work, plan.wake_at_s

    def _note_leader(self, s: Sequence, now_s: float) -> None:
        """Count the batches in a row, by share, that were led by a prompt which had waited for
        PATIENCE_S or longer.
        """
        aged = now_s - s.queued_at_s >= PATIENCE_S
        self._aged_led[s.share] = self._aged_led.get(s.share, 0) + 1 if aged else 0
        shares = {s.share for s in self.waiting}
        self._aged_led = {share: n for share, n in self._aged_led.items() if n and share in shares}

    def _as_waiting(self, s: Sequence) -> Waiting:
        started, left = s.holding is not None, len(s.tokens) - s.computed
        cached = 0 if started or s.waited_due_s is None else self._size * self._cached_blocks(s)
        return Waiting(s.key, left, s.queued_at_s, started, s.share, s.waited_due_s, cached)

    def _cached_blocks(self, s: Sequence) -> int:
        """Return about how many of the sequence's first blocks are in the pool now."""
        usable = min(len(s.names), (len(s.tokens) - 1) // self._size)
        return bisect_left(range(usable), True, key=lambda i: self._store.pool.find(s.names[i]) is None)

    def _with_blocks(self, batch: Many[tuple[int, int]], places: dict[int, int]) -> Work:
        """Return the sequences of a planned batch that hold blocks or get them now.

        Once a prompt has to wait for blocks, none after it may start, or long prompts would starve.
        `places` is for `_Coming`.
        """
        by_key = {s.key: s for s in self.waiting}
        holders = [s for s in self.waiting if s.holding is not None and s.masked]
        coming = _Coming(holders, {key for key, _ in batch}, places)
        work: Work = []
        full = False
        for key, n in batch:
            s = by_key[key]
            if s.holding is None and self._start_is_coming(s, coming):
                continue
            if s.holding is None:
                full = full or not self._start(s)
                if s.holding is not None:
                    coming.begun(s)
            if s.holding is not None:
                work.append((s, min(n, len(s.tokens) - s.computed)))
        return work

    def _start_is_coming(self, s: Sequence, coming: _Coming) -> bool:
        """Return whether the first block that a sequence would compute is about to be computed for
        another one, so that it should wait and find it in the cache.

        The choices of one request, or many requests with one system prompt, therefore compute their
        common start once.
        """
        for name in s.names[: (len(s.tokens) - 1) // self._size]:
            if self._store.pool.find(name) is None and self._store.host.find(name) is None:
                return coming.before(s, name)
        return False

    def _start(self, s: Sequence) -> bool:
        """Give a waiting sequence its blocks, the first ones from the cache as far as possible.

        The last token is always computed. Returns False if there are not enough blocks.
        """
        if self._names is not None:
            self._names.extend(s.names, s.tokens, s.tenant)
        usable = (len(s.tokens) - 1) // self._size
        try:
            s.holding, hits = self._store.acquire(s.names[:usable], self._needed(s), keep_free=len(self.running))
        except NoCapacity:
            return False
        s.computed, s.registered = hits * self._size, hits
        if s.cached_tokens is None:
            s.cached_tokens = min(s.computed, s.prompt_tokens)
            self.cached_tokens += s.cached_tokens
        return True

    # ---- After the step ----

    def note_prefilled(self, work: Work) -> None:
        """Count the tokens of a batch."""
        self.prompt_tokens += sum(n for _, n in work)
        self.rest_tokens += sum(n for s, n in work if s.is_rest)

    def note_computed(self, s: Sequence) -> None:
        """Make the blocks that are full now available to other sequences."""
        full = s.computed // self._size
        if self._names is None or s.holding is None or full <= s.registered:
            return
        self._names.extend(s.names, s.tokens, s.tenant)
        self._store.register(s.holding, s.registered, s.names[s.registered : full])
        s.registered = full

    def start_decode(self, s: Sequence) -> None:
        """Move a sequence to the running ones: its prompt is computed, its first token sampled."""
        self.waiting.remove(s)
        self.prefilling.discard(s)
        self.running.append(s)

    def remove(self, s: Sequence, *, poisoned: bool) -> None:
        """Remove a sequence from the queues.

        Blocks that a sender reads stay leased until `free_if_releasable`. Poisoned blocks must not
        be found again.
        """
        self.prefilling.discard(s)
        if s in self.waiting:
            self.waiting.remove(s)
        if s in self.running:
            self.running.remove(s)
        if s.holding is not None and poisoned:
            self._store.pool.forget(s.holding)
        if not s.hands_over:
            self.committed -= 1
        elif s.holding is not None:
            self._store.pool.convert(s.holding, State.LEASED)
        self.free_if_releasable(s)

    def free_if_releasable(self, s: Sequence) -> None:
        if s.releasable and s.holding is not None:
            self._store.pool.free(s.holding)
            s.holding = None
