"""A state that was kept is read back, and one that does not fit is a fresh start."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.operator.autoscaling.policy.test_guard import POOLS, SETTINGS, observation

from disagg_operator.autoscaling.policy import guard
from disagg_operator.autoscaling.policy.guard import Predicting
from disagg_operator.autoscaling.policy.memory import State
from disagg_operator.autoscaling.policy.observation import Folded
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
