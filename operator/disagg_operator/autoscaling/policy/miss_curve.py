"""PURE: The share of requests that miss their objective by spare workers, learned from requests.

The scale is that of square-root staffing (S. Halfin, W. Whitt, "Heavy-traffic limits for queues
with many exponential servers", 1981): if the demand is the work of w workers, n workers have the
slack (n - w) / sqrt(w). Misses depend almost only on the slack, in small pools and in large ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from disagg_operator.autoscaling.policy.forecast import DAY_S, ERROR_STEP, TINY

LEAST_SLACK = -2.0
SLACK_STEP = 2 * ERROR_STEP
SLACK_BINS = round((2 * 2 - LEAST_SLACK) / SLACK_STEP) + 1  # up to a slack of 4
_PRIOR_REQUESTS = 150.0
_MEMORY_S = 2 * DAY_S
_PRIOR_WEIGHT = 6.0  # Fisher information of the middle, which is known to about 0.4
_WORTH = 10.0


def slack(workers: float, demand: float) -> float:
    """Return the slack of `workers` for a demand in workers."""
    return (workers - demand) / math.sqrt(max(demand, TINY))


@dataclass(frozen=True, slots=True)
class MissCurve:
    """The share of misses by slack.

    It is a logistic function that falls from 1 to 0 around `middle`, corrected by counts where
    there are many. `middle` moves with the evidence (one step of Newton's method on the likelihood
    of an interval), so that the misses at one slack also tell of its neighbours. `weight` is the
    Fisher information behind `middle`. Counts fade over two days.
    """

    middle: float
    width: float
    weight: float = _PRIOR_WEIGHT
    total: tuple[float, ...] = (0.0,) * SLACK_BINS
    missed: tuple[float, ...] = (0.0,) * SLACK_BINS

    def logistic(self, at: float) -> float:
        """Return the value of the logistic function at a slack."""
        return 1 / (1 + math.exp(max(-50.0, min(50.0, (at - self.middle) / self.width))))

    def shares(self) -> list[float]:
        """Return the share of misses in each bin; it never rises with the slack."""
        found, least = [], 1.0
        for i, (n, missed) in enumerate(zip(self.total, self.missed, strict=True)):
            share = (missed + _PRIOR_REQUESTS * self.logistic(LEAST_SLACK + i * SLACK_STEP)) / (n + _PRIOR_REQUESTS)
            least = min(least, share)
            found.append(least)
        return found


def observe(curve: MissCurve, at: float, total: float, ok: float, interval_s: float) -> MissCurve:
    """Process one interval that was served with the slack `at`."""
    if not (total > 0 and math.isfinite(at)):
        return curve
    i = max(0, min(SLACK_BINS - 1, round((at - LEAST_SLACK) / SLACK_STEP)))
    keep = math.exp(-interval_s / _MEMORY_S)
    totals, missed = [n * keep for n in curve.total], [n * keep for n in curve.missed]
    totals[i] += total
    missed[i] += max(0.0, total - ok)
    # Requests of one interval miss together, so they are worth only a few independent ones.
    worth, expected = min(total, _WORTH), curve.logistic(at)
    weight = max(_PRIOR_WEIGHT, curve.weight * keep) + worth * expected * (1 - expected) / curve.width**2
    move = worth * ((1 - ok / total) - expected) / curve.width / weight
    middle = curve.middle + max(-SLACK_STEP, min(SLACK_STEP, move))
    return replace(curve, middle=max(LEAST_SLACK, middle), weight=weight, total=tuple(totals), missed=tuple(missed))


def share_at(shares: list[float], at: float) -> float:
    """Return the share of misses at a slack, interpolated linearly between the bins."""
    x = min(max((at - LEAST_SLACK) / SLACK_STEP, 0.0), SLACK_BINS - 1.0)
    i = min(int(x), SLACK_BINS - 2)
    return shares[i] + (shares[i + 1] - shares[i]) * (x - i)
