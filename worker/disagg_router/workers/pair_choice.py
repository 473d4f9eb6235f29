"""PURE: The choice of the pair of workers for a request, and the circuit breaker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import product

from disagg_router.workers.shares import drawn, pair_shares
from disagg_router.workers.worker_info import Identity, Worker
from disagg_wire.protocol import (
    FEATURE_FIRST_TOKEN_FROM_DECODE,
    FEATURE_NO_LOCAL_PREFILL,
    FEATURE_STRUCTURED_NOT_RESUMED,
)
from disagg_wire.room import Room, total_room


def pair_key(prefill: Worker, decode: Worker) -> str:
    return f"{prefill.incarnation}|{decode.incarnation}"


@dataclass(slots=True)
class Breaker:
    """A circuit breaker. Something that failed is avoided for 1 s until it succeeds, and twice as
    long after each further failure, up to 30 s.

    A failure while it is avoided belongs to work that was under way before and says nothing new, so
    many requests that one fault ended count once.
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    _failed: dict[str, tuple[int, float]] = field(default_factory=dict)

    def failed(self, key: str, now_s: float) -> None:
        if self.is_open(key, now_s):
            return
        times = self._failed.get(key, (0, 0.0))[0]
        # The exponent is bounded: within a night, failures reach a power of two that no float can
        # hold.
        self._failed[key] = (times + 1, now_s + min(self.longest_s, self.first_s * 2.0 ** min(times, 30)))

    def succeeded(self, key: str) -> None:
        self._failed.pop(key, None)

    def is_open(self, key: str, now_s: float) -> bool:
        return key in self._failed and now_s < self._failed[key][1]

    def keep_only(self, incarnations: Collection[str], now_s: float) -> None:
        """Forget entries of workers that are gone, unless they are recent.

        Such workers may be back with the next poll.
        """
        kept = {
            k: v for k, v in self._failed.items() if now_s < v[1] or all(part in incarnations for part in k.split("|"))
        }
        self._failed = kept


@dataclass(frozen=True, slots=True)
class Inflight:
    """The work that this router itself has under way, by incarnation. It is fresher than the last
    `info`.
    """

    requests: Mapping[str, int]
    tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Choice:
    """The workers for one attempt.

    Without `decode`, prefill answers alone; without `prefill`, decode prefills locally.
    `computed_tokens` is the number of tokens of the prompt that are not expected in a cache.
    """

    prefill: Worker | None
    decode: Worker | None
    computed_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """The properties of a request that the choice depends on.

    `cached_tokens` is the number of its tokens that should be in each worker's prefix cache because
    it has computed them, by incarnation, and `held_tokens` the same because it has decoded them.
    """

    tokens: int = 0
    cached_tokens: Mapping[str, int] = field(default_factory=dict)
    held_tokens: Mapping[str, int] = field(default_factory=dict)
    resumes_format: bool = False
    """Whether it continues an output that has to match a format."""

    def fits(self, w: Worker) -> bool:
        """Return whether the worker can serve such a request at all."""
        return not (self.resumes_format and FEATURE_STRUCTURED_NOT_RESUMED in w.features)

    def missing_share(self, w: Worker) -> float:
        """Return the share of the prompt whose KV would have to be sent to a decode worker."""
        return 1.0 - min(1.0, self.held_tokens.get(w.incarnation, 0) / max(1, self.tokens))

    def to_compute(self, w: Worker) -> int:
        return max(1, self.tokens - self.cached_tokens.get(w.incarnation, 0))


# The delay of a prompt by one running sequence in a worker that does both, in tokens of prefill.
_RUNNING_TOKENS = 32
# The share of its seats by which a decode worker that holds the whole prompt may be fuller than one
# that holds nothing of it, and is still chosen. Beyond that, the KV is better moved.
_HELD_SEATS = 0.25


def _running(w: Worker, inflight: Inflight) -> int:
    return max(w.running_requests, inflight.requests.get(w.incarnation, 0))


def _decode_load(w: Worker, inflight: Inflight, prompt: Prompt) -> tuple[float, ...]:
    """Return a sort key: workers that could not take the request go last; then seats count, and
    the KV that would have to be sent; then the KV that is free.
    """
    load = _seats(w, inflight) + _HELD_SEATS * prompt.missing_share(w)
    return _lacks_kv(w, prompt), load, -w.blocks_free / max(1, w.blocks_total)


def _lacks_kv(w: Worker, prompt: Prompt) -> float:
    return float(w.room is not None and w.room.free_tokens <= prompt.tokens)


def _seats(w: Worker, inflight: Inflight) -> float:
    """Return the share of a worker's seats that is taken."""
    return _running(w, inflight) / max(1, w.max_running)


def _prefill_load(w: Worker, inflight: Inflight, prompt: Prompt) -> tuple[float, ...]:
    """Return a sort key: the number of tokens to compute until this prompt is done.

    Among equals, the worker that has the start of the prompt goes first: similar prompts may
    follow.
    """
    queued = max(w.waiting_tokens, inflight.tokens.get(w.incarnation, 0))
    requests = max(w.waiting_requests + w.running_requests, inflight.requests.get(w.incarnation, 0))
    return float(queued + prompt.to_compute(w)), -float(prompt.cached_tokens.get(w.incarnation, 0)), float(requests)


def _whole_load(w: Worker, inflight: Inflight, prompt: Prompt) -> tuple[float, ...]:
    """Return the sort key of workers that do both."""
    queued, hits, requests = _prefill_load(w, inflight, prompt)
    no_seat = float(_seats(w, inflight) >= 1.0)
    return _lacks_kv(w, prompt), no_seat, queued + _RUNNING_TOKENS * _running(w, inflight), hits, requests


Loading = Callable[[Worker, Inflight, Prompt], tuple[float, ...]]


def _by_load(
    workers: Iterable[Worker], load: Loading, inflight: Inflight, prompt: Prompt, dice: Callable[[], float]
) -> list[Worker]:
    return sorted(workers, key=lambda w: (*load(w, inflight, prompt), dice()))


def choose(
    workers: Iterable[Worker],
    *,
    identity: Identity,
    single_token: bool,
    avoid: Callable[[str], bool],
    full: Collection[str],
    proven: Collection[str],
    inflight: Inflight,
    dice: Callable[[], float],
    prompt: Prompt | None = None,
) -> Choice | None:
    """Return the least loaded pair that can communicate, or None if no worker can serve now.

    Without a usable prefill worker, a decode worker prefills locally. `identity` is what the
    request was tokenized for: both workers have it. `avoid(key)` tells whether the breaker is open
    for an incarnation or a pair. `full` contains the incarnations that have just refused this
    request. `proven` contains the incarnations that have moved KV; others are taken only if no pair
    of these is left. `dice` decides between equal loads.
    """
    prompt = prompt or Prompt()
    usable = [
        w
        for w in workers
        if w.offers(identity) and prompt.fits(w) and w.incarnation not in full and not avoid(w.incarnation)
    ]
    prefills = _by_load((w for w in usable if w.serves("prefill")), _prefill_load, inflight, prompt, dice)
    alone = [p for p in prefills if FEATURE_FIRST_TOKEN_FROM_DECODE not in p.features]
    if single_token and alone:
        return Choice(alone[0], None, prompt.to_compute(alone[0]))
    whole = all(w.role == "both" for w in usable)
    decodes = _by_load(
        (w for w in usable if w.serves("decode")), _whole_load if whole else _decode_load, inflight, prompt, dice
    )
    # Nothing is gained by moving KV between workers that are alike.
    if whole:
        return Choice(None, decodes[0], prompt.to_compute(decodes[0])) if decodes else None
    trusted = ([p for p in prefills if p.incarnation in proven], [d for d in decodes if d.incarnation in proven])
    layouts = _layouts(prefills, decodes, dice)
    for (some_prefills, some_decodes), compat in product((trusted, (prefills, decodes)), layouts):
        for decode in (d for d in some_decodes if d.compat == compat):
            for prefill in (p for p in some_prefills if p.compat == compat):
                if avoid(pair_key(prefill, decode)):
                    continue
                one = prefill.incarnation == decode.incarnation
                return Choice(None if one else prefill, decode, prompt.to_compute(prefill))
    local = [d for d in decodes if FEATURE_NO_LOCAL_PREFILL not in d.features]
    return Choice(None, local[0], prompt.to_compute(local[0])) if local else None


def _layouts(prefills: Iterable[Worker], decodes: Iterable[Worker], dice: Callable[[], float]) -> list[str]:
    """Return the `compat` hashes of which there are pairs, in the order in which to try them.

    There are several during a rollout that changes the KV cache. The first is drawn in proportion
    to the pairs: by load alone, the few decode workers of one layout would get the requests that
    its few prefill workers cannot take.
    """
    counts = [Counter(w.compat for w in workers) for workers in (prefills, decodes)]
    found = sorted(counts[0].keys() & counts[1].keys())
    if len(found) < 2:
        return found
    shares = pair_shares([(counts[0][c], counts[1][c]) for c in found])
    first = found[drawn(shares, dice())]
    return [first, *sorted((c for c in found if c != first), key=lambda c: -shares[found.index(c)])]


def scarce_pool(workers: Iterable[Worker], *, identity: Identity, full: Collection[str]) -> str:
    """Return the pool that a request waits for when `choose` has found nothing.

    That is prefill if a decode worker has room and could serve with a prefill worker, but not
    alone.
    """
    decodes = [w for w in workers if w.offers(identity) and w.serves("decode") and w.incarnation not in full]
    needs_prefill = bool(decodes) and all(FEATURE_NO_LOCAL_PREFILL in w.features for w in decodes)
    return "prefill" if needs_prefill else "decode"


def decode_room(workers: Iterable[Worker], compat: str) -> Room | None:
    """Return the total room of the decode workers that KV of `compat` can go to.

    It is None if none of them reports its room.
    """
    return total_room(w.room for w in workers if w.room is not None and w.compat == compat and w.serves("decode"))


def handshake_pairs(workers: Iterable[Worker], limit: int = 64) -> list[tuple[Worker, Worker]]:
    """Return the pairs whose handshake is due: workers of one model whose KV is compatible.

    These are all pairs if there are few, and otherwise one for each worker on either side.
    """
    groups: dict[tuple[Identity, str], tuple[list[Worker], list[Worker]]] = {}
    for w in sorted(workers, key=lambda w: w.name):
        sides = groups.setdefault((w.identity, w.compat), ([], []))
        if w.role in ("prefill", "decode") and w.serves(w.role) and not w.last_resort:
            sides[w.role == "decode"].append(w)
    whole = [sides for sides in groups.values() if all(sides)]
    if sum(len(prefills) * len(decodes) for prefills, decodes in whole) <= limit:
        return [(p, d) for prefills, decodes in whole for p in prefills for d in decodes]
    return [
        (prefills[i % len(prefills)], decodes[i % len(decodes)])
        for prefills, decodes in whole
        for i in range(max(len(prefills), len(decodes)))
    ]
