"""A state that was kept is read back, and one that does not fit is a fresh start."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.autoscaling.policy.cluster import RULES, look, steady
from tests.operator.autoscaling.policy.looks import POOLS, SETTINGS, observation
from tests.profiles import examples

from disagg_operator.autoscaling.policy import guard
from disagg_operator.autoscaling.policy.guard import Predicting
from disagg_operator.autoscaling.policy.memory import PoolLimits, State
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Folded, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.policy.predictive import step
from disagg_operator.autoscaling.records.saved_state import from_json, to_json


def learned(steps: int) -> State:
    """Return the state after some steps."""
    memory = Predicting()
    for i in range(steps):
        _, memory = guard.step(SETTINGS, POOLS, {}, Folded(observation(5 * i), frozenset()), memory)
    return memory.state


@pytest.mark.parametrize("steps", [0, 1, 40])
def test_a_state_comes_back_to_nine_digits(steps: int) -> None:
    state = learned(steps)
    kept = json.loads(json.dumps(to_json(state), allow_nan=False))
    # As text, NaN equals itself on every version of Python.
    assert repr(to_json(from_json(kept))) == repr(kept)
    assert from_json(kept).prefill.demand.levels == pytest.approx(state.prefill.demand.levels, rel=1e-8)


def test_what_is_missing_has_its_default() -> None:
    kept = to_json(learned(3))
    del kept["learned"]
    assert repr(from_json(kept).learned) == repr(State().learned)
    assert from_json(kept).prefill.demand.levels


GOOD = to_json(learned(3))


@pytest.mark.parametrize(
    "raw",
    [
        [], None, {}, {"version": 99}, GOOD | {"version": None},
        GOOD | {"odd": 1}, GOOD | {"prefill": 3}, GOOD | {"seen_with": [1]},
        GOOD | {"output_tokens": 10**400},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_a_fresh_start(raw: Any) -> None:
    assert repr(from_json(raw)) == repr(State())


def test_the_state_survives_as_json_to_the_last_decision() -> None:
    _, state = steady()
    raw = json.dumps(to_json(state), allow_nan=False)
    assert len(raw) < 60_000
    again = from_json(json.loads(raw))
    o = look(3615, 55.0, Pods(5, 5, cold_start_s=120.0), Pods(5, 5, cold_start_s=120.0))
    one, two = step(RULES, o, state)[0], step(RULES, o, again)[0]
    assert (one.prefill, one.decode, one.reason) == (two.prefill, two.decode, two.reason)


@pytest.mark.parametrize("raw", [{}, {"version": 99}, {"version": 1}, {"version": 1, "prefill": 3}])
def test_a_state_that_does_not_fit_is_a_fresh_start(raw: dict[str, object]) -> None:
    assert repr(from_json(raw)) == repr(State())  # as text, NaN equals itself on every version of Python


_number = st.one_of(st.just(math.nan), st.floats(0, 1e7), st.floats(0))
_pods = st.builds(
    lambda replicas, ready, ages: Pods(replicas, min(ready, replicas), tuple(ages)),
    st.integers(0, 40),
    st.integers(0, 40),
    st.lists(_number, max_size=3),
)


@settings(max_examples=examples(60))
@given(st.lists(st.tuples(_pods, _pods, st.lists(_number, min_size=28, max_size=28)), min_size=1, max_size=8))
def test_whatever_is_seen_the_answer_is_within_bounds_and_json(
    observations: list[tuple[Pods, Pods, list[float]]],
) -> None:
    rules, state = replace(RULES, prefill=PoolLimits(2, 11, 4), decode=PoolLimits(3, 9, 4)), State()
    for i, (p, d, v) in enumerate(observations):
        o = Observation(15.0 * (i + 1), 15.0, PrefillSignals(p, *v[:14]), DecodeSignals(d, *v[14:]))
        answer, state = step(rules, o, state)
        assert 2 <= answer.prefill <= 11
        assert 3 <= answer.decode <= 9
        if o.blind:
            assert answer.prefill >= min(p.replicas, 11)
        json.dumps(to_json(state), allow_nan=False)
