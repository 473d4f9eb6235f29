"""The predictive policy's state is plain JSON, and saving it changes no decision."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.autoscaling.policy.test_predictive import RULES, look, steady
from tests.profiles import examples

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.policy.predictive import PoolLimits, State, step
from disagg_operator.autoscaling.records.saved_state import from_json, to_json


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
