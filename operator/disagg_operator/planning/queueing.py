"""PURE: how long requests wait for one of several workers.

Mean wait: Sakasegawa's approximation for M/G/c ("An approximation formula Lq = a b^rho / (1 -
rho)", 1977). Tail: exponential, given that one waits at all; the chance of that is taken as
rho^(sqrt(2(c+1)) - 1), which the same formula implies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

MOST_REPLICAS = 10_000


def wait_s(arrivals_per_s: float, service_s: float, service_cv2: float, servers: int, percentile: float) -> float:
    """The percentile of the wait; infinite when overloaded."""
    rho = arrivals_per_s * service_s / servers
    if rho >= 1:
        return math.inf
    if rho <= 0:
        return 0.0
    waits = rho ** (math.sqrt(2 * (servers + 1)) - 1)
    mean_s = (1 + service_cv2) / 2 / (servers * (1 - rho)) * service_s  # of those who wait
    return 0.0 if waits <= 1 - percentile else mean_s * math.log(waits / (1 - percentile))


def least(good: Callable[[int], bool], low: int, high: int = MOST_REPLICAS) -> int | None:
    """The smallest n in [low, high] that is good, where all above a good one are; None: not even
    `high` is.
    """
    step, n = 1, low
    while not good(n):
        if n >= high:
            return None
        low, n, step = n + 1, min(high, n + step), 2 * step
    high = n
    while low < high:
        middle = (low + high) // 2
        if good(middle):
            high = middle
        else:
            low = middle + 1
    return high


def poisson_quantile(mean: float, percentile: float) -> float:
    """How many of something rare and independent happen, at most, in `percentile` of the cases."""
    if mean > 100:
        return mean + NormalDist().inv_cdf(percentile) * math.sqrt(mean)
    n, chance, total = 0, math.exp(-mean), math.exp(-mean)
    while total < percentile:
        n += 1
        chance *= mean / n
        total += chance
    return float(n)
