"""What an earlier release has saved is read; what has no form stays for the codec to refuse."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.autoscaling.policy.forecast import ERROR_BINS
from disagg_operator.autoscaling.records import former_releases

NOW = [float(i) for i in range(ERROR_BINS)]


def test_large_errors_count_as_the_largest_that_there_are() -> None:
    short = [1.0] * 12 + NOW + [2.0] * 12
    pool = {"cap": 3, "cap_until_s": 9.0, "load": 1.0, "demand": {"errors": [short, NOW], "fresh_s": 0.0}}
    kept = [NOW[0] + 12, *NOW[1:-1], NOW[-1] + 24]
    assert former_releases.state({"prefill": pool, "began_s": 1.0}) == {
        "prefill": {"load": 1.0, "demand": {"errors": kept, "fresh_s": 0.0}},
        "began_s": 1.0,
    }
    assert former_releases.settings({"budget": 1.0, "tuning": {"error_memory_s": [1.0], "level_s": [2.0]}}) == {
        "budget": 1.0,
        "tuning": {"level_s": [2.0]},
    }


@pytest.mark.parametrize(
    "raw",
    [
        None,
        [],
        {"prefill": 1},
        {"prefill": {"demand": 1}},
        {"prefill": {"demand": {}}},
        {"prefill": {"demand": {"errors": []}}},
        {"prefill": {"demand": {"errors": NOW}}},
        {"prefill": {"demand": {"errors": [[1.0]]}}},
        {"prefill": {"demand": {"errors": [["x"] * 49]}}},
    ],
)
def test_everything_else_stays_as_it_is(raw: Any) -> None:
    assert former_releases.state(raw) == raw


@pytest.mark.parametrize("raw", [None, {}, {"tuning": 1}, {"tuning": {"error_memory_s": 800.0}}])
def test_other_settings_stay_as_they_are(raw: Any) -> None:
    assert former_releases.settings(raw) == raw


def test_intervals_have_the_weight_of_today() -> None:
    evidence = {"squares": [400.0, 800.0], "products": [4.0], "rows": 3.0}
    state = {"prefill": {"pressure": 0.5, "load": 1.0}, "learned": {"prefill": evidence, "decode": None}}
    assert former_releases.state(state) == {
        "prefill": {"load": 1.0},
        "learned": {"prefill": {"squares": [1.0, 2.0], "products": [0.01], "rows": 3.0}, "decode": None},
    }
    odd = {"prefill": {"pressure": 0.5}, "learned": {"prefill": {"squares": ["x"], "products": 1}}}
    assert former_releases.state(odd)["learned"] == odd["learned"]
    assert former_releases.state({"prefill": {"pressure": 0.5}, "learned": 1}) == {"prefill": {}, "learned": 1}
