"""A rate is forecast by the forecaster that errs least, and its errors are remembered."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.policy.forecast import (
    DAY_S,
    SHAPE_BINS,
    Forecaster,
    Tuning,
    least,
    predict,
    prior,
    ratios,
    remember,
    scaled,
    seasonal,
    update,
)

TUNING = Tuning()


def follow(
    rate: Callable[[float], float],
    until_s: float,
    step_s: float = 15.0,
    f: Forecaster | None = None,
    begin_s: float = 0.0,
) -> Forecaster:
    """Return a forecaster that has seen `rate` and was asked at each step for two minutes ahead."""
    f, now_s = f or Forecaster(), begin_s
    while now_s < until_s:
        now_s += step_s
        f = update(f, now_s, step_s, rate(now_s), TUNING)
        f = remember(f, now_s + 120.0, predict(f, 120.0, TUNING))
    return f


def test_before_the_first_rate_nothing_is_known() -> None:
    f = Forecaster()
    assert math.isnan(f.level)
    assert len(predict(f, 120.0, TUNING)) == 1
    assert math.isnan(predict(f, 120.0, TUNING)[0])
    assert math.isnan(seasonal(f, 0.0))


def test_the_first_rate_is_expected_to_stay() -> None:
    f = update(Forecaster(), 100.0, 15.0, 8.0, TUNING)
    assert f.level == 8.0
    assert predict(f, 120.0, TUNING) == pytest.approx((8.0,) * 4)


def test_a_steady_rate_is_forecast_and_errors_gather_at_none() -> None:
    f = follow(lambda _: 5.0, 3600)
    assert predict(f, 120.0, TUNING)[0] == pytest.approx(5.0)
    likeliest = max(ratios(f), key=lambda pair: pair[1])
    assert likeliest[0] == pytest.approx(1.0)
    assert likeliest[1] > 0.8


def test_a_rise_is_believed_to_go_on_and_a_fall_is_not() -> None:
    rising, falling = follow(lambda t: 1 + t / 100, 1800), follow(lambda t: 40 - t / 100, 1800)
    assert predict(rising, 120.0, TUNING)[0] > rising.level
    assert predict(falling, 120.0, TUNING)[0] == pytest.approx(falling.level, rel=0.2)


def test_a_forecast_stays_between_a_part_and_a_multiple_of_the_level() -> None:
    f = follow(lambda t: 1.0 if t < 600 else 1000.0, 615)
    for horizon_s in (0.0, 60.0, 86_400.0):
        _, *each = predict(f, horizon_s, TUNING)
        assert all(0.3 * level - 1e-9 <= e <= 2.5 * level + 1e-9 for e, level in zip(each, f.levels, strict=True))


@given(st.lists(st.tuples(st.floats(0.001, 3600), st.floats(0, 1e6)), min_size=1, max_size=30), st.floats(0, 3600))
def test_whatever_is_seen_a_forecast_is_a_number_from_0_on(seen: list[tuple[float, float]], horizon_s: float) -> None:
    f, now_s = Forecaster(), 0.0
    for interval_s, rate in seen:
        now_s += interval_s
        f = update(f, now_s, interval_s, rate, TUNING)
        found = predict(f, horizon_s, TUNING)
        assert all(math.isfinite(value) and value >= 0 for value in found)
        f = remember(f, now_s + horizon_s, found)
    assert sum(share for _, share in ratios(f)) == pytest.approx(1.0, abs=0.01)


def test_two_rates_at_one_moment_are_no_division_by_nothing() -> None:
    f = update(update(Forecaster(), 10.0, 5.0, 3.0, TUNING), 10.0, 5.0, 5.0, TUNING)
    assert all(map(math.isfinite, predict(f, 60.0, TUNING)))


def test_a_forecast_is_judged_when_its_time_has_come_and_once() -> None:
    f = follow(lambda _: 5.0, 600)
    asked = remember(replace(f, made=()), 700.0, (8.0, 8.0, 5.0, 5.0))
    early = update(asked, 720.0, 15.0, 5.0, TUNING)
    assert early.made == asked.made
    judged = update(early, 735.0, 15.0, 5.0, TUNING)
    assert judged.made == ()
    below = round(math.log(5 / 8) / 0.05) + 12
    assert judged.errors[below] > 0.9
    assert judged.skill[0] > f.skill[0]
    assert judged.skill[1] <= f.skill[1]


def test_a_rise_that_two_intervals_show_is_a_rise() -> None:
    calm = follow(lambda _: 5.0, 7200)
    one = update(calm, 7215.0, 15.0, 50.0, TUNING)
    two = update(one, 7230.0, 15.0, 50.0, TUNING)
    assert least(Forecaster()) == least(update(Forecaster(), 0.0, 15.0, 50.0, TUNING)) == 0.0
    assert least(one) <= 5.0
    assert least(two) > 40.0
    assert least(replace(two, skill=(0.5, 0.5, 0.5))) < 15.0


def test_a_level_that_missed_a_step_has_no_say_in_the_forecast() -> None:
    """However little the slow forecaster has erred before: it is further off than it ever errs."""
    calm = replace(follow(lambda _: 5.0, 7200), skill=(0.02, 0.01, 0.0005))
    f = calm
    for i in range(1, 5):
        f = update(f, 7200 + 15.0 * i, 15.0, 50.0, TUNING)
    assert f.levels[2] < 12
    assert predict(f, 120.0, TUNING)[0] > 30
    assert predict(calm, 120.0, TUNING)[0] == pytest.approx(5.0, rel=0.01)


def test_a_surprise_is_forgotten_within_the_hour() -> None:
    f = follow(lambda t: 5.0 if t < 7200 else 50.0, 7200 + 4500)
    assert sum(share for ratio, share in ratios(f) if ratio > 1.3) < 0.02


def test_no_more_forecasts_wait_than_there_is_room_for() -> None:
    f = Forecaster()
    for i in range(500):
        f = remember(f, float(i), (1.0,))
    assert [due for due, _ in f.made] == [float(i) for i in range(500 - SHAPE_BINS, 500)]


def test_another_unit_changes_every_rate_and_no_time() -> None:
    f = follow(lambda t: 5 + math.sin(t), 600)
    doubled = scaled(f, 2.0)
    assert predict(doubled, 120.0, TUNING) == pytest.approx([2 * v for v in predict(f, 120.0, TUNING)])
    assert doubled.level == pytest.approx(2 * f.level)
    assert ([at for at, *_ in doubled.made], doubled.errors, doubled.skill) == (
        [at for at, *_ in f.made],
        f.errors,
        f.skill,
    )
    assert doubled.shape == tuple(2 * v for v in f.shape)


def test_what_is_not_known_is_expected_to_err_by_a_fifth() -> None:
    mean = sum(p * math.log(r) for r, p in ratios(Forecaster()))
    spread = math.sqrt(sum(p * math.log(r) ** 2 for r, p in ratios(Forecaster())))
    assert mean == pytest.approx(0.0, abs=1e-6)
    assert spread == pytest.approx(0.2, abs=0.01)
    assert sum(prior()) == pytest.approx(2.0)


def day(at_s: float) -> float:
    return 10 + 8 * math.sin(2 * math.pi * at_s / DAY_S)


def test_a_day_has_a_shape_once_two_of_them_are_known() -> None:
    one = follow(day, 1.5 * DAY_S, 300.0)
    assert math.isnan(seasonal(one, 0.0))
    two = follow(day, 3 * DAY_S, 300.0)
    for hour in range(24):
        assert seasonal(two, 3600.0 * hour) == pytest.approx(day(3600.0 * hour), rel=0.12, abs=0.3)
    assert seasonal(two, 5 * DAY_S + 7000.0) == pytest.approx(seasonal(two, 7000.0))
    jumps = [abs(b - a) for a, b in itertools.pairwise(seasonal(two, 60.0 * i) for i in range(1440))]
    assert max(jumps) < DAY_S / SHAPE_BINS / 60 * 0.1


def test_the_known_day_bends_a_forecast() -> None:
    """In the early morning, two hours ahead are on the way up."""
    f = follow(day, 3 * DAY_S, 300.0)
    ahead = predict(f, 3 * 3600.0, TUNING)[0]
    assert f.level < ahead
    flat = replace(f, shape_seen_s=0.0)
    assert predict(flat, 3 * 3600.0, TUNING)[0] < ahead
