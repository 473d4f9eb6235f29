"""The days before, as a metrics store has them, make a state that knows the day."""

from __future__ import annotations

import math

import pytest

from disagg_operator.autoscaling.policy import forecast
from disagg_operator.autoscaling.policy.history import Minute, seed
from disagg_operator.autoscaling.policy.memory import Settings, State
from disagg_operator.performance.profile import PROFILES

SETTINGS = Settings(PROFILES["70b-h100-tp4"], 0.06)


def minutes(days: float) -> list[Minute]:
    """Return minutes whose requests follow the day, up to the time 0."""
    found = []
    for i in range(int(days * 1440)):
        at_s = 60.0 * (i + 1) - days * 86_400
        n = 600 * (1 + 0.8 * math.sin(2 * math.pi * at_s / 86_400))
        found.append(Minute(at_s, n, 1000 * n, 200 * n))
    return found


def test_a_minute_may_be_taken_several_times() -> None:
    assert Minute(60.0, 2.0, 30.0, 4.0).times(2.5) == Minute(60.0, 5.0, 75.0, 10.0)


def test_two_days_before_give_the_shape_and_the_errors_and_no_level() -> None:
    state = seed(SETTINGS, minutes(3))
    for pool in (state.prefill, state.decode):
        assert (pool.demand.levels, pool.demand.recent, pool.demand.made) == ((), (), ())
        high, low = (forecast.seasonal(pool.demand, at_s) for at_s in (21_600.0, 64_800.0))
        assert high / low == pytest.approx(9.0, rel=0.2)
        assert sum(pool.demand.errors) > 3.0
    assert state.prefill.curve == State().prefill.curve
    work = SETTINGS.profile.prefill_work_s(18, 18_000, 36e6)
    assert forecast.seasonal(state.prefill.demand, 21_600.0) == pytest.approx(work, rel=0.1)


def test_a_minute_without_requests_says_nothing() -> None:
    some = minutes(0.01)
    silent = [m for minute in some for m in (minute, Minute(minute.at_s + 1, 0.0, 0.0, 0.0))]
    assert repr(seed(SETTINGS, silent)) == repr(seed(SETTINGS, some))


def test_without_a_past_a_state_is_fresh() -> None:
    assert repr(seed(SETTINGS, [])) == repr(State())
