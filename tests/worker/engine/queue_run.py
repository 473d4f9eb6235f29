"""The queues of an engine at work on blocks without bytes, with steps that compute nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from disagg_protocol.events import Event
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.block_pool import Holding, State
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.kv_store import KvStore
from disagg_worker.engine.prefill_pace import UNKNOWN, Pace
from disagg_worker.engine.prefix_hash import PrefixNames
from disagg_worker.engine.queues import Queues
from disagg_worker.engine.sequence import Sequence

SIZE, MAX_LEN, BLOCKS = 4, 64, 20


class NoMemory:
    """Blocks without bytes: the queues decide by counts and never look at the content."""

    def read(self, block: int) -> bytes:
        return b"1"

    def write(self, block: int, content: bytes) -> None: ...


def _no_sink(event: Event) -> None: ...


@dataclass
class Run:
    """A pool, its queues, and steps that compute nothing."""

    growth: int  # Tokens for which an admitted request gets blocks.
    prefix_cache: bool = True
    clock_s: float = 0.0
    pace: Pace = UNKNOWN
    next_key: int = 0
    reserved: list[tuple[Holding, int, int]] = field(default_factory=list)  # (holding, tokens, tokens to emit).
    sent: list[Sequence] = field(default_factory=list)  # Sequences whose blocks a sender still reads.
    ended: list[Sequence] = field(default_factory=list)

    def __post_init__(self) -> None:
        config = EngineConfig(
            "t",
            "both",
            block_size_tokens=SIZE,
            max_running=6,
            max_batch_tokens=16,
            saturating_tokens=8,
            growth_reserve_tokens=self.growth,
        )
        self.store = KvStore(BLOCKS, "lru", 3, NoMemory())
        self.names = PrefixNames(b"k" * 32, SIZE) if self.prefix_cache else None
        self.queues = Queues(config, MAX_LEN, self.store, self.names)

    def sequence(
        self, n: int, new: int, tenant: str, *, hands_over: bool = False, due_in_s: float | None = None, of: int = 0
    ) -> Sequence:
        """Return a sequence; prompts with different values of `of` have no start in common."""
        self.next_key += 1
        params = SamplingParams(seed=0, max_new_tokens=new)
        due_s = None if due_in_s is None else self.clock_s + due_in_s
        tokens = [of + i % 3 for i in range(n)]
        s = Sequence(self.next_key, "r", tokens, n, params, _no_sink, hands_over, self.clock_s, tenant, due_s)
        if self.names is not None:
            self.names.extend(s.names, s.tokens, tenant)
        return s

    def turn(self) -> int:
        """Do one turn of the engine and return the number of sequences that made progress."""
        self.clock_s += 0.1
        running = self.queues.take_decode()
        work, _ = self.queues.take_prefill(self.clock_s, self.pace)
        assert sum(n for _, n in work) <= 16
        assert all(n >= 1 for _, n in work)
        for s, n in work:
            s.computed += n
            self._after(s, done=s.computed == len(s.tokens))
        self.queues.prefilling.clear()
        for s in running:
            assert s.computed == len(s.tokens) - 1 < len(s.blocks) * SIZE
            s.computed += 1
            self._after(s, done=True)
        self.check()
        return len(work) + len(running)

    def _after(self, s: Sequence, *, done: bool) -> None:
        self.queues.note_computed(s)
        if not done:
            return
        s.tokens.append(s.emitted % 3)
        if s.hands_over or s.finish_reason(MAX_LEN):
            s.ended = True
            s.release_asked = not s.hands_over
            self.queues.remove(s, poisoned=False)
            (self.sent if s.hands_over else self.ended).append(s)
        elif s in self.queues.prefilling:
            self.queues.start_decode(s)

    def check(self) -> None:
        pool = self.store.pool
        assert sum(pool.count(state) for state in State) == BLOCKS
        owners = [s.holding for s in (*self.queues.waiting, *self.queues.running, *self.sent) if s.holding]
        held = {b for h in (*owners, *(r[0] for r in self.reserved)) for b in h.blocks}
        assert pool.count(State.USED) + pool.count(State.LEASED) == len(held)
        assert [s.key for s in self.queues.waiting] == sorted(s.key for s in self.queues.waiting)
        assert len(self.queues.running) <= 6
