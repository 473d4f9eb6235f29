"""PURE: The verdict on a canary: whether the new revision serves worse than the old one.

Both are counted in the same minutes, so that a burst or a slow client meets both. The question is
whether the new one has missed the objectives more often than chance explains: Fisher's exact test,
one-sided (R. A. Fisher, Statistical Methods for Research Workers, section 21.02; A. Agresti,
Categorical Data Analysis, section 3.5). Given how many requests of both have missed in a minute,
the number of those that are the new one's has a hypergeometric distribution if the two are alike.
The minutes are added up only then (Agresti, section 7.3.5): in a bad minute the new one may have
had another share of the requests than in a good one. The test is exact with any counts, also with
few, and near 100 %, where the normal approximation of the difference of two proportions says
nothing.

One rule: when both have `min_requests`, the new one is worse if the probability of so many misses
is at most 4 %; otherwise it is promoted. Before that it is only looked at whether it is clearly
broken: after the nth minute in which both had requests, the probability must be at most
1 % / n(n + 1), and these add up to no more than 1 % over any number of minutes. What is known of a
minute does not change after it counts, so that there is one look for each. Together, a revision
that is as good as the old one goes back in at most 5 % of all cases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

CONTINUE, PROMOTE, REVERT, INCONCLUSIVE = "continue", "promote", "revert", "inconclusive"
AT_THE_END = 0.04
BEFORE = 0.01
# How much longer than `max_duration_s` requests that have come before, and routers, are waited for.
LATE_S = 300.0
_NEGLIGIBLE = 1e-15
# Beyond this standard deviation the distribution of the misses is as good as normal, and long.
_NORMAL = 50.0

Minute = tuple[int, int, int, int]
"""The requests of the new revision, those of them that met the objectives, and both of the old
one.
"""


@dataclass(frozen=True, slots=True)
class Counts:
    """The requests of a revision, and those of them that met the objectives."""

    requests: int = 0
    met: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """What is known of both revisions."""

    minutes: tuple[Minute, ...] = ()
    """The minutes in which both had requests, and for which nothing is waited any more."""
    coming: int | None = 0
    """How many requests of each there are with the minutes that are still waited for; None if no
    router has told anything.
    """

    @property
    def new(self) -> Counts:
        return Counts(sum(m[0] for m in self.minutes), sum(m[1] for m in self.minutes))

    @property
    def old(self) -> Counts:
        return Counts(sum(m[2] for m in self.minutes), sum(m[3] for m in self.minutes))

    @property
    def requests(self) -> int:
        """The number of requests of each."""
        return min(self.new.requests, self.old.requests)


@dataclass(frozen=True, slots=True)
class CanaryRules:
    """The time for which a revision is tried."""

    min_requests: int
    max_duration_s: float


@lru_cache(maxsize=1024)
def chance(minutes: tuple[Minute, ...]) -> float:
    """Return the probability that the new revision has missed so often, or more often, if the two
    are alike.
    """
    seen, expected, variance = 0, 0.0, 0.0
    for new, new_met, old, old_met in minutes:
        all_, missed = new + old, new + old - new_met - old_met
        seen += new - new_met
        expected += new * missed / all_
        variance += new * missed * (all_ - missed) * old / (all_ * all_ * max(1, all_ - 1))
    if variance > _NORMAL**2:
        return 0.5 * math.erfc((seen - 0.5 - expected) / math.sqrt(2 * variance))
    least, parts = 0, [1.0]
    for new, new_met, old, old_met in minutes:
        first, more = _misses(new, old, new + old - new_met - old_met)
        least, parts = _trimmed(least + first, _sums(parts, more))
    return min(1.0, sum(parts[max(0, seen - least) :]))


@lru_cache(maxsize=1024)
def _misses(new: int, old: int, missed: int) -> tuple[int, list[float]]:
    """Return the smallest number of misses of the new revision, and the probabilities from there
    on, if both together have missed so many.
    """
    least, most = max(0, missed - old), min(new, missed)
    if least == most:
        return least, [1.0]
    log_all = _log_choose(new + old, new)
    parts = (
        _log_choose(missed, k) + _log_choose(new + old - missed, new - k) - log_all for k in range(least, most + 1)
    )
    return _trimmed(least, [math.exp(part) for part in parts])


def _trimmed(least: int, parts: list[float]) -> tuple[int, list[float]]:
    """Return the probabilities without those at both ends that do not matter."""
    kept = [i for i, part in enumerate(parts) if part > _NEGLIGIBLE]
    return least + kept[0], parts[kept[0] : kept[-1] + 1]


def _sums(a: list[float], b: list[float]) -> list[float]:
    """Return the distribution of the sum of two numbers with these distributions."""
    if len(b) == 1:
        return a
    out = [0.0] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            out[i + j] += x * y
    return out


def _limit(minutes: int) -> float:
    """Return the probability at which a revision is clearly broken after so many minutes."""
    return BEFORE / (minutes * (minutes + 1))


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def verdict(seen: Comparison, rules: CanaryRules, passed_s: float) -> str:
    """Return what follows once a revision has been tried for `passed_s` seconds."""
    if seen.requests >= rules.min_requests:
        return REVERT if chance(seen.minutes) <= AT_THE_END else PROMOTE
    if seen.minutes and chance(seen.minutes) <= _limit(len(seen.minutes)):
        return REVERT
    hope = seen.coming is None or seen.coming >= rules.min_requests
    return INCONCLUSIVE if passed_s >= rules.max_duration_s + (LATE_S if hope else 0.0) else CONTINUE


def words_of(seen: Comparison, rules: CanaryRules, percent: int) -> str:
    """Return the state of a canary in words."""
    share = f"canary: {percent} % of the requests, {seen.requests} of {rules.min_requests}"
    if not seen.minutes:
        return share
    return f"{share}, attainment {_percent(seen.new)} new, {_percent(seen.old)} old"


def _percent(counts: Counts) -> str:
    # Rounded down: 99.96 % is not all.
    return f"{math.floor(1000 * counts.met / counts.requests) / 10:g} %"
