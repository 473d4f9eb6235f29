"""PURE: The verdict on a canary: whether the new revision serves worse than the old one.

Both are counted in the same minutes, so that a burst or a slow client meets both. The question is
whether the new one has missed the objectives more often than chance explains: Fisher's exact test,
one-sided (R. A. Fisher, Statistical Methods for Research Workers, section 21.02; A. Agresti,
Categorical Data Analysis, section 3.5). Given how many requests of both have missed, the number of
those that are the new one's has a hypergeometric distribution if the two are alike. The test is
exact with any counts, also with few, and near 100 %, where the normal approximation of the
difference of two proportions says nothing.

One rule: when both have `min_requests`, the new one is worse if the probability of so many misses
is at most 4 %; otherwise it is promoted. Before that it is only looked at whether it is clearly
broken: at each of the at most `min_requests` numbers of requests, the probability must be at most
1 % / `min_requests`. Together, a revision that is as good as the old one goes back in at most 5 %
of all cases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CONTINUE, PROMOTE, REVERT, INCONCLUSIVE = "continue", "promote", "revert", "inconclusive"
AT_THE_END = 0.04
BEFORE = 0.01
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True, slots=True)
class Counts:
    """The requests of a revision that have ended, and those of them that met the objectives."""

    ended: int = 0
    met: int = 0

    @property
    def missed(self) -> int:
        return self.ended - self.met


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was counted of both revisions in the same minutes."""

    new: Counts = Counts()
    old: Counts = Counts()

    @property
    def requests(self) -> int:
        """How many requests of each there are."""
        return min(self.new.ended, self.old.ended)


@dataclass(frozen=True, slots=True)
class CanaryRules:
    """How long a revision is tried."""

    min_requests: int
    max_duration_s: float


def chance(seen: Comparison) -> float:
    """Return the probability that the new revision has missed so often, or more often, if the two
    are alike.
    """
    n, all_ = seen.new.ended, seen.new.ended + seen.old.ended
    missed = seen.new.missed + seen.old.missed
    log_all, expected = _log_choose(all_, n), missed * n / max(1, all_)
    total = 0.0
    for k in range(max(seen.new.missed, n - (all_ - missed)), min(n, missed) + 1):
        part = math.exp(_log_choose(missed, k) + _log_choose(all_ - missed, n - k) - log_all)
        total += part
        if k > expected and part < _NEGLIGIBLE * total:
            break
    return min(1.0, total)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


def verdict(seen: Comparison, rules: CanaryRules, passed_s: float) -> str:
    """Return what follows once a revision has been tried for `passed_s` seconds."""
    if seen.requests >= rules.min_requests:
        return REVERT if chance(seen) <= AT_THE_END else PROMOTE
    if seen.new.missed and chance(seen) <= BEFORE / rules.min_requests:
        return REVERT
    return INCONCLUSIVE if passed_s >= rules.max_duration_s else CONTINUE


def words_of(seen: Comparison, rules: CanaryRules, percent: int) -> str:
    """Return the state of a canary in words."""
    share = f"canary: {percent} % of the requests, {seen.requests} of {rules.min_requests}"
    if not seen.new.ended or not seen.old.ended:
        return share
    return f"{share}, attainment {_percent(seen.new)} new, {_percent(seen.old)} old"


def _percent(counts: Counts) -> str:
    # Rounded down: 99.96 % is not all.
    return f"{math.floor(1000 * counts.met / counts.ended) / 10:g} %"
