"""The safeguards around the predictive policy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from tests.operator.autoscaling.policy.looks import POOLS, SETTINGS, blind, observation, run

from disagg_operator.autoscaling.policy import guard
from disagg_operator.autoscaling.policy.decision import ABOVE_MAXIMUM, BELOW_MINIMUM, STABILIZING
from disagg_operator.autoscaling.policy.guard import ENOUGH, FORECAST_DOWN, FORECAST_UP, PARTIAL_METRICS, Predicting
from disagg_operator.autoscaling.policy.observation import (
    Folded,
    Observation,
)
from disagg_operator.autoscaling.policy.predictive import State
from disagg_operator.autoscaling.records import state_store
from disagg_operator.autoscaling.records.saved_state import from_json, to_json


def test_a_flood_scales_up_and_says_why_in_words_and_numbers() -> None:
    last = run(*(observation(5 * i, per_s=400.0) for i in range(30)))[-1]
    assert last is not None
    decision = last.decisions["decode"]
    assert decision.to > decision.current == 2
    assert decision.reason == FORECAST_UP
    assert "workers of work expected" in decision.message
    assert decision.numbers["forecast"] == pytest.approx(decision.value)
    assert "prefill" not in decision.message


def test_an_objective_that_cannot_be_met_is_part_of_the_decision_and_unknown_while_blind() -> None:
    flooded = run(*(observation(5 * i, per_s=4000.0) for i in range(30)))[-1]
    calm = run(*(observation(5 * i) for i in range(30)))[-1]
    unseen = run(blind(0.0))[-1]
    assert flooded is not None
    assert calm is not None
    assert unseen is not None
    assert "at most 10 workers are allowed" in (flooded.decisions["prefill"].unmet or "")
    assert {d.unmet for d in calm.decisions.values()} == {""}
    assert {d.unmet for d in unseen.decisions.values()} == {None}


def test_a_pool_that_is_not_scaled_keeps_its_size_and_gets_no_decision() -> None:
    last = run(*(observation(5 * i, prefill=7, per_s=1.0) for i in range(300)), pools={"decode": POOLS["decode"]})[-1]
    assert last is not None
    assert set(last.decisions) == {"decode"}
    assert last.targets.prefill == 7


def quiet_after(minutes: int, **kwargs: Any) -> list[guard.Outcome | None]:
    """Return the outcomes for nine workers with almost nothing to do."""
    return run(*(observation(5 * i, 9, 9, per_s=0.2) for i in range(12 * minutes)), **kwargs)


def test_too_many_workers_are_given_back() -> None:
    last = quiet_after(30)[-1]
    assert last is not None
    assert {d.reason for d in last.decisions.values()} == {FORECAST_DOWN}
    assert max(d.to for d in last.decisions.values()) < 9


def test_a_pool_of_which_something_is_not_known_is_not_scaled_down() -> None:
    looks = [observation(5 * i, 9, 9, per_s=0.2) for i in range(360)]
    last = run(*looks[:-1], Folded(looks[-1], frozenset({"decode"})))[-1]
    assert last is not None
    assert last.decisions["prefill"].reason == FORECAST_DOWN
    assert (last.decisions["decode"].to, last.decisions["decode"].reason) == (9, PARTIAL_METRICS)


def test_a_declared_window_holds_the_highest_of_it() -> None:
    free, held = quiet_after(30), quiet_after(30, windows={"decode": 3600.0})
    assert free[-1] is not None
    assert held[-1] is not None
    assert free[-1].decisions["decode"].to < 9
    assert (held[-1].decisions["decode"].to, held[-1].decisions["decode"].reason) == (9, STABILIZING)
    over = quiet_after(30, windows={"decode": 60.0})[-1]
    assert over is not None
    assert over.decisions["decode"].to < 9


def test_one_missed_scrape_says_nothing_and_a_longer_blindness_holds() -> None:
    outcomes = run(observation(0), observation(5), blind(10), blind(15), blind(25))
    assert [o is None for o in outcomes] == [False, False, True, True, False]
    last = outcomes[-1]
    assert last is not None
    assert all(d.blind and d.to == d.current for d in last.decisions.values())


@pytest.mark.parametrize("lost", ["generated_tokens", "prompt_tokens", "prompt_tokens_squared"])
def test_half_a_picture_is_not_taken_for_an_idle_pool(lost: str) -> None:
    """All decode workers are silent at once while the routers answer.

    The forecast must not fall to nothing.
    """

    def without(o: Observation) -> Observation:
        part = "decode" if lost == "generated_tokens" else "prefill"
        half: Any = (
            replace(o.decode, generated_tokens=math.nan) if part == "decode" else replace(o.prefill, **{lost: math.nan})  # type: ignore[arg-type]
        )
        return replace(o, **{part: half})

    looks = [observation(5 * i, per_s=50.0) for i in range(40)]
    whole, broken = run(*looks), run(*looks[:30], without(looks[30]), *looks[31:])
    assert broken[30] is None
    assert whole[-1] is not None
    assert broken[-1] is not None
    for pool in POOLS:
        now, then = broken[-1].decisions[pool].numbers["forecast"], whole[-1].decisions[pool].numbers["forecast"]
        assert now == pytest.approx(then, rel=0.05)


def test_blind_from_the_start_is_told_at_once_and_bounds_hold_all_the_same() -> None:
    first = run(blind(0, prefill=0, decode=20))[0]
    assert first is not None
    assert {name: d.to for name, d in first.decisions.items()} == {"prefill": 1, "decode": 10}


def test_enough_is_a_decision_too() -> None:
    outcomes = run(*(observation(5 * i) for i in range(3)))
    assert outcomes[0] is not None
    assert outcomes[0].decisions["prefill"].reason == ENOUGH


def test_a_state_is_a_few_kilobytes_and_survives_the_config_map() -> None:
    _, memory = guard.step(SETTINGS, POOLS, {}, Folded(observation(0), frozenset()), Predicting())
    for i in range(1, 400):
        _, memory = guard.step(SETTINGS, POOLS, {}, Folded(observation(5 * i, per_s=5 + i % 7), frozenset()), memory)
    text = state_store.encode({"state": to_json(memory.state)})
    assert len(text) < state_store.MAX_BYTES / 4
    kept = state_store.decode(text)
    assert kept is not None
    assert to_json(from_json(kept["state"])) == to_json(memory.state)
    for broken in ("", "####", state_store.encode({})[:-4], "eJwDAAAAAAE="):
        assert not state_store.decode(broken)
    assert repr(from_json({})) == repr(State())


@pytest.mark.parametrize(
    ("sizes", "reason"), [((0, 12), [BELOW_MINIMUM, ABOVE_MAXIMUM]), ((12, 0), [ABOVE_MAXIMUM, BELOW_MINIMUM])]
)
def test_a_size_out_of_bounds_is_mended_and_said_to_be_one(sizes: tuple[int, int], reason: list[str]) -> None:
    (outcome,) = run(observation(0, *sizes))
    assert outcome is not None
    assert [outcome.decisions[pool].reason for pool in POOLS] == reason
    assert all(1 <= decision.to <= 10 for decision in outcome.decisions.values())


def test_pools_that_are_not_scaled_are_fixed_to_their_size() -> None:
    o = observation(0, 3, 4)
    both = guard.fixed(SETTINGS, {}, o)
    assert [(limits.least, limits.most) for limits in (both.prefill, both.decode)] == [(3, 3), (4, 4)]
    assert guard.fixed(SETTINGS, POOLS, o) == SETTINGS
