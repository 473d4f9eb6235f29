"""Role flips: the worker that is chosen, the moment, and no other decision that undoes the flip."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.autoscaling.policy import role_moves
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.autoscaling.policy.role_moves import Flip


def decisions(prefill: tuple[int, int], decode: tuple[int, int]) -> dict[str, Decision]:
    return {
        name: Decision(a, b, "why", "Forecast", None, 0.0)
        for name, (a, b) in (("prefill", prefill), ("decode", decode))
    }


@pytest.mark.parametrize(
    ("flip", "prefill", "decode", "expected"),
    [
        pytest.param(1, (3, 2), (1, 2), ("prefill", "decode", 1), id="one gives, the other takes"),
        pytest.param(-2, (1, 3), (4, 2), ("decode", "prefill", 2), id="the other way, two"),
        pytest.param(2, (3, 2), (1, 4), ("prefill", "decode", 1), id="no more than is given"),
        pytest.param(1, (3, 3), (1, 2), None, id="scaling down was held"),
        pytest.param(1, (3, 2), (2, 2), None, id="nobody takes"),
        pytest.param(0, (3, 2), (1, 2), None, id="not asked for"),
    ],
)
def test_what_moves(flip: int, prefill: tuple[int, int], decode: tuple[int, int], expected: Any) -> None:
    assert role_moves.wanted(Targets(prefill[1], decode[1], flip=flip), decisions(prefill, decode)) == expected


def test_a_pool_that_is_not_scaled_never_gives_or_takes() -> None:
    found = decisions((3, 2), (1, 2))
    del found["prefill"]
    assert role_moves.wanted(Targets(2, 2, flip=1), found) is None


def test_while_a_worker_moves_nobody_deletes_a_pod_or_starts_one_for_it() -> None:
    left = role_moves.without(decisions((3, 1), (1, 4)), "prefill", "decode", 1)
    assert (left["prefill"].to, left["decode"].to) == (2, 3)
    done = role_moves.without(decisions((3, 2), (1, 2)), "prefill", "decode", 1)
    assert (done["prefill"].to, done["decode"].to) == (3, 1)
    # The policy may have changed its decision meanwhile: growth of the giving pool is not part of
    # the role flip.
    changed = role_moves.without(decisions((3, 5), (4, 2)), "prefill", "decode", 1)
    assert (changed["prefill"].to, changed["decode"].to) == (5, 2)


def test_the_idlest_goes_and_an_unknown_load_is_a_high_one() -> None:
    assert role_moves.idlest({"a": 3.0, "b": 1.0}, ["a", "b", "c"]) == "b"
    assert role_moves.idlest({}, ["b", "a"]) == "a"
    assert role_moves.idlest({}, []) is None


def test_a_move_of_a_pool_that_is_not_scaled_changes_the_other_alone() -> None:
    both = decisions((3, 1), (1, 4))
    for left, changed in (("prefill", "decode"), ("decode", "prefill")):
        found = role_moves.without({changed: both[changed]}, "prefill", "decode", 1)
        assert found == {changed: role_moves.without(both, "prefill", "decode", 1)[changed]}
        assert left not in found


@pytest.mark.parametrize(
    ("flip", "prefill_pods", "loads", "pod"),
    [
        (1, ["a", "b", "c"], {"a": 2.0, "b": 1.0, "c": 3.0}, "b"),
        (1, ["a"], {"a": 0.0}, None),
        (1, [], {}, None),
        (0, ["a", "b"], {}, None),
    ],
)
def test_the_idlest_of_several_is_chosen_and_never_the_only_one(
    flip: int, prefill_pods: list[str], loads: dict[str, float], pod: str | None
) -> None:
    pods = {"prefill": prefill_pods, "decode": ["d"]}
    found = role_moves.chosen(Targets(2, 2, flip=flip), decisions((3, 2), (1, 2)), loads, pods, 7.0)
    assert found == (None if pod is None else Flip(pod, "prefill", "decode", 7.0))


def test_a_stray_is_a_worker_of_another_role_than_its_pool_and_not_the_one_that_moves() -> None:
    pods = {"prefill": ["a", "b", "c", "d"], "decode": ["e", "f"]}
    roles = {"a": "prefill", "b": "decode", "c": "decode", "d": "both", "e": "prefill", "f": None}
    assert role_moves.strays(pods, roles, "b") == [("c", "prefill"), ("e", "decode")]
