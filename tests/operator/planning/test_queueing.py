"""Tests of the waiting times: exact where theory is exact, and monotonic."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.planning.queueing import least, poisson_quantile, wait_s

PERCENTILE = 0.99


@pytest.mark.parametrize("rho", [0.3, 0.7, 0.95])
def test_one_exponential_server_is_exact(rho: float) -> None:
    """An M/M/1 queue has P(wait > t) = rho exp(-(1 - rho) t / service)."""
    assert wait_s(rho, 1.0, 1.0, 1, PERCENTILE) == pytest.approx(math.log(rho / 0.01) / (1 - rho))


@pytest.mark.parametrize(("servers", "rho", "cv2"), [(1, 0.8, 0.0), (4, 0.85, 1.0), (8, 0.9, 0.5), (20, 0.8, 1.0)])
def test_it_is_near_a_simulated_queue(servers: int, rho: float, cv2: float) -> None:
    random = np.random.default_rng(1)
    n = 100_000
    arrival = np.cumsum(random.exponential(1 / (rho * servers), n))
    service = np.ones(n) if cv2 == 0 else random.gamma(1 / cv2, cv2, n)
    free = np.zeros(servers)
    waits = np.empty(n)
    for i in range(n):
        first = int(free.argmin())
        begin = max(arrival[i], free[first])
        waits[i] = begin - arrival[i]
        free[first] = begin + service[i]
    found = wait_s(rho * servers, 1.0, cv2, servers, PERCENTILE)
    assert found == pytest.approx(float(np.quantile(waits[n // 10 :], PERCENTILE)), rel=0.25)


@given(st.floats(0.01, 1000), st.floats(1e-3, 10), st.floats(0, 20), st.integers(1, 500), st.floats(0.5, 0.999))
def test_more_servers_less_load_and_a_lower_percentile_never_wait_longer(
    rate: float, service: float, cv2: float, n: int, q: float
) -> None:
    here = wait_s(rate, service, cv2, n, q)
    assert here >= 0
    assert wait_s(rate, service, cv2, n + 1, q) <= here + 1e-9
    assert wait_s(0.9 * rate, service, cv2, n, q) <= here + 1e-9
    assert wait_s(rate, service, cv2, n, 0.9 * q) <= here + 1e-9


def test_overload_waits_for_ever() -> None:
    assert wait_s(2.0, 1.0, 1.0, 2, PERCENTILE) == math.inf


@given(st.integers(1, 3000), st.integers(1, 2000), st.integers(1, 3000))
def test_least_finds_the_boundary(boundary: int, low: int, high: int) -> None:
    high = max(low, high)
    found = least(lambda n: n >= boundary, low, high)
    assert found == (None if boundary > high else max(low, boundary))


@pytest.mark.parametrize(("mean", "expected"), [(0.001, 0), (0.05, 1), (1.0, 4), (10.0, 18), (50.0, 67)])
def test_poisson_quantiles(mean: float, expected: int) -> None:
    assert poisson_quantile(mean, PERCENTILE) == expected


@given(st.floats(0, 300), st.floats(0, 50))
def test_a_larger_mean_has_no_smaller_quantile(mean: float, more: float) -> None:
    assert poisson_quantile(mean + more, PERCENTILE) >= poisson_quantile(mean, PERCENTILE) - 1


def test_without_arrivals_nobody_waits() -> None:
    assert wait_s(0.0, 1.0, 1.0, 1, PERCENTILE) == 0.0
