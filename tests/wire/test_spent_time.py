"""Tests of the time that a worker has spent on a prompt, as an event tells it."""

from __future__ import annotations

import json

import pytest

from disagg_wire.spent_time import Spent, parse


def test_what_is_written_is_read() -> None:
    assert parse(json.loads(json.dumps(Spent(0.0123456789, 2.0).to_json()))) == Spent(0.012346, 2.0)


@pytest.mark.parametrize(
    "value",
    [
        None,
        "1",
        [],
        {},
        {"wait_s": 1.0, "compute_s": 1.0},
        {"version": 2, "wait_s": 1.0, "compute_s": 1.0},
        {"version": 1, "wait_s": 1.0},
        {"version": 1, "wait_s": -1.0, "compute_s": 1.0},
        {"version": 1, "wait_s": True, "compute_s": 1.0},
        {"version": 1, "wait_s": "1", "compute_s": 1.0},
        {"version": 1, "wait_s": float("nan"), "compute_s": 1.0},
        {"version": 1, "wait_s": 1.0, "compute_s": float("inf")},
        {"version": 1, "wait_s": 1.0, "compute_s": 10**400},
    ],
)
def test_what_is_not_known_here_is_nothing(value: object) -> None:
    assert parse(value) is None


def test_further_fields_do_not_matter() -> None:
    assert parse({"version": 1, "wait_s": 0, "compute_s": 3, "more": []}) == Spent(0.0, 3.0)
