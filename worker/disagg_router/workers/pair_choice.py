"""PURE: what the router knows of each worker, and which pair it picks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field

from disagg_router.workers.worker_info import Worker
from disagg_wire.room import Room, total_room


def pair_key(prefill: Worker, decode: Worker) -> str:
    return f"{prefill.incarnation}|{decode.incarnation}"


@dataclass(slots=True)
class Breaker:
    """Circuit breaker: what failed is avoided for 1 s, doubled with each further failure up to 30
    s, until it succeeds.

    What fails while it is avoided was under way before, and says nothing new: many requests that
    one fault ended count once.
    """

    first_s: float = 1.0
    longest_s: float = 30.0
    _failed: dict[str, tuple[int, float]] = field(default_factory=dict)

    def failed(self, key: str, now_s: float) -> None:
        if self.is_open(key, now_s):
            return
        times = self._failed.get(key, (0, 0.0))[0]
        # Bounded: a power of two that no float can hold is reached in a night.
        self._failed[key] = (times + 1, now_s + min(self.longest_s, self.first_s * 2.0 ** min(times, 30)))

    def succeeded(self, key: str) -> None:
        self._failed.pop(key, None)

    def is_open(self, key: str, now_s: float) -> bool:
        return key in self._failed and now_s < self._failed[key][1]

    def keep_only(self, incarnations: Collection[str], now_s: float) -> None:
        """Forget what concerns workers that are gone, unless it is recent: they may be back with
        the next poll.
        """
        kept = {
            k: v for k, v in self._failed.items() if now_s < v[1] or all(part in incarnations for part in k.split("|"))
        }
        self._failed = kept


@dataclass(frozen=True, slots=True)
class Inflight:
    """What this router itself has under way, by incarnation: fresher than the last `info`."""

    requests: Mapping[str, int]
    tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Choice:
    """`decode` None: prefill only.

    `prefill` None: decode prefills locally. `computed_tokens`: of the prompt, not found in a cache.
    """

    prefill: Worker | None
    decode: Worker | None
    computed_tokens: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Prompt:
    """What the choice depends on in a request.

    `cached_tokens`: by incarnation, how much of it should be in that worker's prefix cache.
    """

    tokens: int = 0
    cached_tokens: Mapping[str, int] = field(default_factory=dict)

    def to_compute(self, w: Worker) -> int:
        return max(1, self.tokens - self.cached_tokens.get(w.incarnation, 0))


# What one running sequence delays a prompt by in a worker that does both, in tokens of prefill.
_RUNNING_TOKENS = 32


def _running(w: Worker, inflight: Inflight) -> int:
    return max(w.running_requests, inflight.requests.get(w.incarnation, 0))


def _decode_load(w: Worker, inflight: Inflight, prompt: Prompt) -> tuple[float, ...]:
    """Who could not take it goes last; then by seats, then by KV."""
    lacks_kv = w.room is not None and w.room.free_tokens <= prompt.tokens
    return float(lacks_kv), _running(w, inflight) / max(1, w.max_running), -w.blocks_free / max(1, w.blocks_total)


def _prefill_load(w: Worker, inflight: Inflight, prompt: Prompt) -> tuple[float, ...]:
    """Tokens to compute until this prompt is done.

    Of equals, the one that has its start: others like it may follow.
    """
    queued = max(w.waiting_tokens, inflight.tokens.get(w.incarnation, 0))
    requests = max(w.waiting_requests + w.running_requests, inflight.requests.get(w.incarnation, 0))
    return float(queued + prompt.to_compute(w)), -float(prompt.cached_tokens.get(w.incarnation, 0)), float(requests)


def _whole_load(w: Worker, inflight: Inflight, prompt: Prompt) -> tuple[float, ...]:
    """Of workers that do both."""
    lacks_kv, seats, _ = _decode_load(w, inflight, prompt)
    queued, hits, requests = _prefill_load(w, inflight, prompt)
    return lacks_kv, float(seats >= 1.0), queued + _RUNNING_TOKENS * _running(w, inflight), hits, requests


Loading = Callable[[Worker, Inflight, Prompt], tuple[float, ...]]


def _by_load(
    workers: Iterable[Worker], load: Loading, inflight: Inflight, prompt: Prompt, dice: Callable[[], float]
) -> list[Worker]:
    return sorted(workers, key=lambda w: (*load(w, inflight, prompt), dice()))


def choose(
    workers: Iterable[Worker],
    *,
    digest: str,
    single_token: bool,
    avoid: Callable[[str], bool],
    full: Collection[str],
    proven: Collection[str],
    inflight: Inflight,
    dice: Callable[[], float],
    prompt: Prompt | None = None,
) -> Choice | None:
    """The least loaded pair that can talk; None: nobody can serve now.

    `digest`: the model that the request was tokenised for. `avoid(key)`: the breaker is open for an
    incarnation or a pair. `full`: incarnations that refused this request just now. `proven`:
    incarnations that have moved KV; others are taken only when no pair of these is left. Equal
    loads are told apart by `dice`. With no usable prefill worker a decode worker prefills locally.
    """
    prompt = prompt or Prompt()
    usable = [w for w in workers if w.digest == digest and w.incarnation not in full and not avoid(w.incarnation)]
    prefills = _by_load((w for w in usable if w.serves("prefill")), _prefill_load, inflight, prompt, dice)
    if single_token and prefills:
        return Choice(prefills[0], None, prompt.to_compute(prefills[0]))
    whole = all(w.role == "both" for w in usable)
    decodes = _by_load(
        (w for w in usable if w.serves("decode")), _whole_load if whole else _decode_load, inflight, prompt, dice
    )
    if whole:  # nothing is gained by moving KV between workers that are alike
        return Choice(None, decodes[0], prompt.to_compute(decodes[0])) if decodes else None
    trusted = ([p for p in prefills if p.incarnation in proven], [d for d in decodes if d.incarnation in proven])
    for some_prefills, some_decodes in (trusted, (prefills, decodes)):
        for decode in some_decodes:
            for prefill in some_prefills:
                if prefill.compat != decode.compat or avoid(pair_key(prefill, decode)):
                    continue
                one = prefill.incarnation == decode.incarnation
                return Choice(None if one else prefill, decode, prompt.to_compute(prefill))
    return Choice(None, decodes[0], prompt.to_compute(decodes[0])) if decodes else None


def decode_room(workers: Iterable[Worker], compat: str) -> Room | None:
    """What is left of the decode workers that KV of `compat` can go to.

    None when none of them says.
    """
    return total_room(w.room for w in workers if w.room is not None and w.compat == compat and w.serves("decode"))


def handshake_pairs(workers: Iterable[Worker], limit: int = 64) -> list[tuple[Worker, Worker]]:
    """The pairs whose handshake is due: all when there are few, else one for each worker on either
    side.
    """
    listed = sorted(workers, key=lambda w: w.name)
    prefills = [w for w in listed if w.role == "prefill" and w.serves("prefill")]
    decodes = [w for w in listed if w.role == "decode" and w.serves("decode")]
    pairs = [(p, d) for p in prefills for d in decodes if p.compat == d.compat]
    if len(pairs) <= limit:
        return pairs
    n = max(len(prefills), len(decodes))
    sampled = [(prefills[i % len(prefills)], decodes[i % len(decodes)]) for i in range(n)]
    return [(p, d) for p, d in sampled if p.compat == d.compat]
