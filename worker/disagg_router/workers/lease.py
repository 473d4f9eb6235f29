"""PURE: A verdict on a worker by its beats: it is alive, or silent, or it hangs.

A worker is silent when no beat has come for too long. It hangs when its engine's step has taken
longer than the engine said it might, several times over, or when its event loop stands still
without such a step. Whoever judges must have been awake: silence counts in the time of an
AwakeClock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from disagg_wire.pulse import Beat

# An event loop may stand still for so many times the silence: it is no engine, but it may parse
# large bodies, and share its processor with others.
_LOOP_SILENCES = 3.0
# Who answers and has sent no beat for so long is judged without beats.
_MUTE_S = 10.0


class Verdict(StrEnum):
    """A verdict on a worker."""

    ALIVE = "alive"
    SILENT = "silent"
    HUNG = "hung"


@dataclass(frozen=True, slots=True)
class Limits:
    """The patience of the judge."""

    silence_s: float = 1.5
    """The seconds without a beat after which a worker is silent."""
    allowance: float = 3.0
    """How many times as long as announced a step may take, before `silence_s` more."""


class AwakeClock:
    """The time for which this process has been awake.

    A process that was stopped, or whose processor others had, has heard nobody. `tick` is called
    often; of the time between two calls, at most `most_s` seconds count.
    """

    def __init__(self, most_s: float) -> None:
        self._most_s = most_s
        self._last_s: float | None = None
        self.now_s = 0.0

    def tick(self, now_s: float) -> None:
        if self._last_s is not None:
            self.now_s += max(0.0, min(self._most_s, now_s - self._last_s))
        self._last_s = now_s


class Lease:
    """A record of what one process of a worker has said of itself, by one AwakeClock.

    Before the first beat it is alive: it may be that none gets through, and then other limits hold.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._heard_s: float | None = None
        self._answered_s = -math.inf
        self._beat = Beat()

    def heard(self, beat: Beat, now_s: float) -> None:
        """Take note of a beat."""
        self._beat, self._heard_s = beat, now_s

    def answered(self, now_s: float) -> None:
        """Take note of an answer to a question of just now: who answers is not silent.

        That prolongs a lease and does not renew one that is over, for which it takes a beat. Who
        answers, and has sent no beat for long, cannot send any: this is as before the first one.
        """
        if self._heard_s is None:
            return
        if now_s - self._heard_s > _MUTE_S:
            self._heard_s = None
        elif not self._is_silent(now_s, self._heard_s):
            self._answered_s = now_s

    def _is_silent(self, now_s: float, heard_s: float) -> bool:
        return now_s - max(heard_s, self._answered_s) > self._limits.silence_s

    @property
    def has_begun(self) -> bool:
        """Whether a beat has come."""
        return self._heard_s is not None

    def verdict(self, now_s: float) -> Verdict:
        if self._heard_s is None:
            return Verdict.ALIVE
        if self._is_silent(now_s, self._heard_s):
            return Verdict.SILENT
        beat, limits = self._beat, self._limits
        allowed_s = 0.0 if beat.step_s is None else limits.allowance * beat.expected_s
        if beat.step_s is not None and beat.step_s > allowed_s + limits.silence_s:
            return Verdict.HUNG
        # An extension that computes may hold the interpreter lock, and with it the loop.
        return Verdict.HUNG if beat.loop_s > allowed_s + _LOOP_SILENCES * limits.silence_s else Verdict.ALIVE
