"""PURE: The order of waiting prompts by their due times, the times by which their first tokens
should be out.

Prompts that can still be on time go first, the earliest due time first, and those that cannot go
last, so that in a burst only the excess is late and not everybody. Once a prompt has waited for
`PATIENCE_S`, the prompt that has waited longest leads every second batch, and three of four batches
once it has waited twice as long. No prompt therefore starves, and an overload leaves the other
batches to prompts that can be on time. A prompt without a due time is never late and counts as due
at its arrival; if no prompt has one, the order is that of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import inf

from disagg_worker.engine.prefill_pace import UNKNOWN, Pace

PATIENCE_S = 20.0
# The most batches in a row that are led by prompts which have waited for PATIENCE_S, and for twice
# as long.
_IN_A_ROW = (1, 3)


@dataclass(frozen=True, slots=True)
class Waiting:
    """A waiting prompt."""

    key: int
    """The key of its sequence."""
    tokens_left: int
    """Tokens that are still to be computed."""
    queued_at_s: float
    """The time of its arrival."""
    started: bool = False
    """Whether it holds blocks; a chunk of it has been computed then."""
    tenant: str = ""
    due_s: float | None = None
    """The time by which its first token should be out, or None."""
    cached_tokens: int = 0
    """The part of `tokens_left` that would be found in the cache as it is now."""


class Standing(IntEnum):
    """The groups of prompts in the order in which they are computed."""

    AGED = 0
    ON_TIME = 1
    LATE = 2


@dataclass(frozen=True, slots=True)
class Timing:
    """The data that decide whether a prompt can be on time."""

    now_s: float
    chunk_tokens: int
    """Prompts are computed in chunks of at most this many tokens."""
    pace: Pace = UNKNOWN
    """The speed of prefill batches."""
    aged_led: Mapping[str, int] = field(default_factory=dict)
    """The batches in a row, by tenant, that were led by prompts which had waited for PATIENCE_S.
    After some of them it is the turn of the others.
    """

    def standing(self, w: Waiting) -> Standing:
        patiences = min(2, int((self.now_s - w.queued_at_s) / PATIENCE_S))
        if patiences > 0 and self.aged_led.get(w.tenant, 0) < _IN_A_ROW[patiences - 1]:
            return Standing.AGED
        return Standing.ON_TIME if self._can_be_on_time(w) else Standing.LATE

    def computed_tokens(self, w: Waiting) -> int:
        """Return the number of the prompt's tokens in the next batch that are not cached."""
        return max(1, min(w.tokens_left - w.cached_tokens, self.chunk_tokens))

    def end_by_s(self, w: Waiting) -> float:
        """Return the time by which the next batch must end so that a prompt in it is on time.

        It is infinite for a prompt that has no due time or is late.
        """
        if w.due_s is None or not self._can_be_on_time(w):
            return inf
        left = w.tokens_left - w.cached_tokens - self.computed_tokens(w)
        return w.due_s - (self.pace.alone_s(left, self.chunk_tokens) + self.pace.between_s if left > 0 else 0.0)

    def batch_end_s(self, tokens: int) -> float:
        """Return the time at which a batch of `tokens` tokens to compute ends if it starts now."""
        return self.now_s + self.pace.batch_s(tokens)

    def _can_be_on_time(self, w: Waiting) -> bool:
        left = max(1, w.tokens_left - w.cached_tokens)
        return w.due_s is None or self.now_s + self.pace.alone_s(left, self.chunk_tokens) <= w.due_s


def by_due(waiting: Sequence[Waiting], timing: Timing) -> list[Waiting]:
    """Sort prompts from the order of arrival into the order in which those of one tenant are to be
    computed.
    """
    if all(w.due_s is None for w in waiting):
        return list(waiting)

    def place(w: Waiting) -> tuple[Standing, float]:
        standing = timing.standing(w)
        if standing is not Standing.ON_TIME:
            return standing, 0.0
        return standing, w.queued_at_s if w.due_s is None else w.due_s

    return sorted(waiting, key=place)
