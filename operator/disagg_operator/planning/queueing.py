"""PURE: The queueing formulas: the wait of requests for one of several workers.

The mean wait is Sakasegawa's approximation for M/G/c ("An approximation formula Lq = a b^rho / (1 -
rho)", 1977). The wait of the requests that wait at all is taken as exponential, and the probability
of waiting as rho^(sqrt(2(c+1)) - 1), which the same formula implies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

MOST_REPLICAS = 10_000


def wait_s(arrivals_per_s: float, service_s: float, service_cv2: float, servers: int, percentile: float) -> float:
    """Return the percentile of the wait in seconds; infinite if the servers are overloaded.

    `service_cv2` is the squared coefficient of variation of the service time.
    """
    rho = arrivals_per_s * service_s / servers
    if rho >= 1:
        return math.inf
    if rho <= 0:
        return 0.0
    waits = rho ** (math.sqrt(2 * (servers + 1)) - 1)
    mean_s = (1 + service_cv2) / 2 / (servers * (1 - rho)) * service_s  # of the requests that wait
    return 0.0 if waits <= 1 - percentile else mean_s * math.log(waits / (1 - percentile))


def least(good: Callable[[int], bool], low: int, high: int = MOST_REPLICAS) -> int | None:
    """Return the smallest n in [low, high] that is good, or None if not even `high` is.

    Every number above a good one must be good.
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
    """Return the percentile of the number of rare independent events with this mean."""
    if mean > 100:
        return mean + NormalDist().inv_cdf(percentile) * math.sqrt(mean)
    n, chance, total = 0, math.exp(-mean), math.exp(-mean)
    while total < percentile:
        n += 1
        chance *= mean / n
        total += chance
    return float(n)
