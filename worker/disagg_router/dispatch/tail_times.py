"""PURE: The time after which a prompt, or the KV of one, is better tried elsewhere.

The slowest twentieth of the last times decides. Prompts are grouped by their length (powers of
two), since long ones take longer. What was given up counts with the time that it had, so that the
limit rises when all become slower.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from disagg_router.dispatch.retry_budget import RetryBudget

_KEPT = 128
# With fewer, the slowest twentieth is none.
_ENOUGH = 20
_TAIL = 0.95


class TailTimes:
    """Learns from the times that it is told, and gives `factor` times their tail, and at least
    `least_s`, as the limit.

    A length of which little is known has that of the next longer one: times do not shrink with it.
    Those of shorter ones say nothing, since KV may wholly hide behind the computation there.
    """

    def __init__(self, factor: float, least_s: float) -> None:
        self._factor = factor
        self._least_s = least_s
        self._times: dict[int, deque[float]] = {}

    def note(self, tokens: int, seconds: float) -> None:
        """Take note of what so many tokens took."""
        self._times.setdefault(tokens.bit_length(), deque(maxlen=_KEPT)).append(seconds)

    def limit_s(self, tokens: int) -> float | None:
        """Return the limit for so many tokens; None if it is not known."""
        size = tokens.bit_length()
        known = [n for n, times in self._times.items() if n >= size and len(times) >= _ENOUGH]
        if not known:
            return None
        times = self._times[min(known)]
        return max(self._least_s, self._factor * sorted(times)[int(_TAIL * len(times))])


@dataclass(slots=True)
class Tails:
    """The times that all requests of a router share: how long prefill takes from the ticket to the
    first token, how long the KV takes from then on, and how many may be given up.
    """

    prompts: TailTimes = field(default_factory=lambda: TailTimes(1.5, 0.5))
    links: TailTimes = field(default_factory=lambda: TailTimes(3.0, 1.0))
    budget: RetryBudget = field(default_factory=lambda: RetryBudget(share=0.05, least_per_s=1.0, burst=3.0))


class Stage:
    """The part of an attempt that runs now, out of a prompt and its KV, by monotonic times."""

    def __init__(self, tails: Tails, prompt_tokens: int, link_tokens: int) -> None:
        self._tails = tails
        self._tokens = {True: prompt_tokens, False: link_tokens}
        self._prefills = True
        self._counted = False
        self._since_s: float | None = None
        self._limit_s: float | None = None

    def _begin(self, now_s: float, *, prefills: bool) -> None:
        self._prefills, self._since_s, self._counted = prefills, now_s, False
        self._limit_s = self._times.limit_s(self._tokens[prefills])

    @property
    def prefills(self) -> bool:
        """Whether the prompt is computed, and not the KV awaited."""
        return self._prefills

    @property
    def _times(self) -> TailTimes:
        return self._tails.prompts if self._prefills else self._tails.links

    def ticket(self, now_s: float) -> None:
        """Note that prefill has been asked."""
        self._begin(now_s, prefills=True)

    def first_token(self, now_s: float) -> None:
        """Note that prefill has computed the prompt."""
        if self._since_s is not None and self._prefills:
            self._end(now_s)
            self._begin(now_s, prefills=False)

    def accepted(self, now_s: float) -> None:
        """Note that decode has the KV."""
        if self._since_s is not None and not self._prefills:
            self._end(now_s)
        self._since_s = None

    def _end(self, now_s: float) -> None:
        if self._since_s is not None and not self._counted:
            self._times.note(self._tokens[self._prefills], now_s - self._since_s)
        self._counted = True

    @property
    def limit_at_s(self) -> float | None:
        """The time from which on it is late; None if there is none."""
        return None if self._since_s is None or self._limit_s is None else self._since_s + self._limit_s

    def is_late(self, now_s: float) -> bool:
        return self.limit_at_s is not None and now_s >= self.limit_at_s

    def give_up(self, now_s: float, *, elsewhere: bool, known: bool = False) -> bool:
        """Return whether to try it elsewhere, if it can be tried there. Otherwise it has as much
        time again.

        `known` says that another one was given up for the same reason a moment ago: the budget is
        for finding out.
        """
        self._end(now_s)
        if elsewhere and (known or self._tails.budget.spare(now_s)):
            self._since_s = None
            return True
        if self._limit_s is not None:
            self._limit_s *= 2
        return False
