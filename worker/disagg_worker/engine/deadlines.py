"""PURE: waiting prompts in the order of their dues, when their first tokens should be out.

Who can still be on time goes first, the earliest due first, and who can't goes last: in a burst
only the excess is late, not everybody. Every second batch is led by whoever has waited longest,
once that is `PATIENCE_S`, and three of four once it is twice as long: nobody starves, and an
overload leaves the others to those who can be on time. A prompt without a due is never late and
counts as due when it came; where nobody has one, the order is that of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf

from disagg_worker.engine.prefill_pace import UNKNOWN, Pace

PATIENCE_S = 20.0
# So many batches in a row may be led by those that have waited once the patience, and twice.
_IN_A_ROW = (1, 3)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A prompt that still has `tokens_left` to compute.

    `started`: it holds blocks; a chunk of it was computed already.

    due_s: when its first token should be out, None: at no certain time. cached_tokens: of
    tokens_left, those that will be found in the cache as it is now.
    """

    key: int
    tokens_left: int
    queued_at_s: float
    started: bool = False
    tenant: str = ""
    due_s: float | None = None
    cached_tokens: int = 0


class Standing(IntEnum):
    """Who comes first."""

    AGED = 0
    ON_TIME = 1
    LATE = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """What tells who can be on time: prompts are computed in chunks of at most `chunk_tokens`, at
    `pace`. `aged_led`: by tenant, how many batches in a row were led by those that had waited for
    the patience: after some it is the others' turn.
    """

    now_s: float
    chunk_tokens: int
    pace: Pace = UNKNOWN
    aged_led: Mapping[str, int] = field(default_factory=dict)

    def standing(self, w: Waiting) -> Standing:
        patiences = min(2, int((self.now_s - w.queued_at_s) / PATIENCE_S))
        if patiences > 0 and self.aged_led.get(w.tenant, 0) < _IN_A_ROW[patiences - 1]:
            return Standing.AGED
        return Standing.ON_TIME if self._can_be_on_time(w) else Standing.LATE

    def computed_tokens(self, w: Waiting) -> int:
        """Of the prompt's tokens in the next batch, those that are not cached."""
        return max(1, min(w.tokens_left - w.cached_tokens, self.chunk_tokens))

    def end_by_s(self, w: Waiting) -> float:
        """When the next batch must have ended if the prompt, being in it, is to be on time.

        Infinite when it has no due, or is late.
        """
        if w.due_s is None or not self._can_be_on_time(w):
            return inf
        left = w.tokens_left - w.cached_tokens - self.computed_tokens(w)
        return w.due_s - (self.pace.alone_s(left, self.chunk_tokens) + self.pace.between_s if left > 0 else 0.0)

    def batch_end_s(self, tokens: int) -> float:
        """When a batch of so many tokens to compute, started now, ends."""
        return self.now_s + self.pace.batch_s(tokens)

    def _can_be_on_time(self, w: Waiting) -> bool:
        left = max(1, w.tokens_left - w.cached_tokens)
        return w.due_s is None or self.now_s + self.pace.alone_s(left, self.chunk_tokens) <= w.due_s


def by_due(waiting: Sequence[Waiting], timing: Timing) -> list[Waiting]:
    """`waiting`, in order of arrival, in the order in which one tenant's are to be computed."""
    if all(w.due_s is None for w in waiting):
        return list(waiting)

    def place(w: Waiting) -> tuple[Standing, float]:
        standing = timing.standing(w)
        if standing is not Standing.ON_TIME:
            return standing, 0.0
        return standing, w.queued_at_s if w.due_s is None else w.due_s

    return sorted(waiting, key=place)
