"""Tests of the fit: it finds the coefficients from which times were computed, even with noise."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.performance.fit import DecodePoint, FitError, Limits, PrefillPoint, ShortAnswer, fit, non_negative
from disagg_operator.performance.profile import Profile

TRUE = Profile(
    1, 4e-3, 120e-6, 30e-9, 0.8e-3, 150e-6, 40e-9, 40_000, overhead_s=6e-3, batch_wait_s=0.05, batch_full_tokens=225
)
LENGTHS = (16, 32, 64, 96, 144, 225, 324, 486, 729, 1000)
LIMITS = Limits(1, 40_000)


def points(true: Profile, noise: float, seed: int = 0) -> tuple[list[PrefillPoint], list[DecodePoint]]:
    draw = random.Random(seed)

    def about(seconds: float) -> float:
        return seconds * (1 + noise * draw.uniform(-1, 1))

    prefill = []
    for n in LENGTHS:
        wait_s = true.batch_wait_s if n < true.batch_full_tokens else 0.0
        prefill.append(
            PrefillPoint(
                n, about(true.overhead_s + wait_s + true.isolated_s(n)), about(true.isolated_s(n)) if n >= 200 else None
            )
        )
    decode = [DecodePoint(b, b * held, about(true.step_s(b, b * held))) for b in (1, 2, 4, 8, 16) for held in (30, 560)]
    return prefill, decode


def test_exact_times_give_the_exact_profile() -> None:
    answers = [
        ShortAnswer(130, 24, 0.004 + 23 * TRUE.step_s(1, 142)),
        ShortAnswer(50, 11, 0.004 + 10 * TRUE.step_s(1, 55.5)),
    ]
    found = fit(*points(TRUE, 0.0), LIMITS, answers, front_s=0.02)
    p = found.profile
    assert (p.a_s, p.b_s_per_token, p.c_s_per_token2) == pytest.approx((4e-3, 120e-6, 30e-9), rel=1e-3)
    assert (p.d_s, p.e_s_per_sequence, p.f_s_per_token) == pytest.approx((0.8e-3, 150e-6, 40e-9), rel=1e-3)
    assert (p.overhead_s, p.batch_wait_s) == pytest.approx((6e-3, 0.05), rel=1e-3)
    assert (p.batch_full_tokens, p.front_s, p.kv_tokens) == (225, 0.02, 40_000)
    assert p.handover_s == pytest.approx(0.004, rel=0.02)
    assert found.worst_error < 1e-3


@pytest.mark.parametrize("seed", range(5))
def test_noise_of_5_percent_moves_no_prediction_by_more_than_10(seed: int) -> None:
    found = fit(*points(TRUE, 0.05, seed), LIMITS)
    for n in (250, 600, 1000):
        assert found.profile.isolated_s(n) == pytest.approx(TRUE.isolated_s(n), rel=0.10)
    for b in (1, 8, 16):
        assert found.profile.step_s(b, b * 300) == pytest.approx(TRUE.step_s(b, b * 300), rel=0.10)
    assert found.worst_error < 0.2


def test_what_joining_sequences_and_large_batches_cost_comes_back() -> None:
    true = replace(TRUE, take_in_s=9e-3, h_s_per_sequence2=2e-6)
    prefill, _ = points(true, 0.0)
    alone = [DecodePoint(b, b * held, true.step_s(b, b * held)) for b in (1, 2, 4, 8, 16, 32, 64) for held in (30, 560)]
    fed = [
        DecodePoint(b + j, b * 200, true.step_s(b + j, b * 200) + j * true.take_in_s, j)
        for b, j in ((2, 0.05), (8, 0.11))
    ]
    found = fit(prefill, [*alone, *fed], LIMITS)
    assert (found.profile.take_in_s, found.profile.h_s_per_sequence2) == pytest.approx((9e-3, 2e-6), rel=1e-3)
    assert "new" in found.decode[-1].what
    assert found.worst_error < 1e-3


def test_without_a_batch_wait_none_is_found() -> None:
    plain = Profile(1, 4e-3, 120e-6, 0.0, 1e-3, 1e-4, 0.0, 1000, overhead_s=3e-3)
    found = fit(*points(plain, 0.05), LIMITS).profile
    assert (found.batch_wait_s, found.batch_full_tokens) == (0.0, 0)
    assert found.overhead_s == pytest.approx(3e-3, rel=0.7)


@given(
    st.lists(st.floats(1e-6, 1), min_size=3, max_size=3),
    st.lists(st.integers(1, 2000), min_size=5, max_size=12, unique=True),
)
def test_coefficients_are_never_negative_and_times_come_back(true: list[float], lengths: list[int]) -> None:
    rows = [(1.0, n, n * n) for n in lengths]
    times = [sum(x * y for x, y in zip(true, row, strict=True)) for row in rows]
    found = non_negative(rows, times)
    assert min(found) >= 0
    for row, measured in zip(rows, times, strict=True):
        assert sum(x * y for x, y in zip(found, row, strict=True)) == pytest.approx(measured, rel=0.05)


def test_a_falling_time_is_fitted_without_a_negative_slope() -> None:
    assert non_negative([(1.0, 1.0), (1.0, 2.0), (1.0, 3.0)], [3.0, 2.0, 1.0])[1] == 0.0


def test_too_little_is_refused() -> None:
    prefill, decode = points(TRUE, 0.0)
    with pytest.raises(FitError, match="prefill"):
        fit(prefill[:4], decode, LIMITS)
    with pytest.raises(FitError, match="decode"):
        fit(prefill, decode[:2], LIMITS)
