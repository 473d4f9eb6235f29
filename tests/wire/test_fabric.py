"""Tests of what a worker says of the RDMA network that it asks for."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.fabric import amount, parse_report, problem_of, summary, told, words_of
from disagg_wire.problems import PROBLEM

PORT = {
    "name": "mlx5_0:1", "error": "", "state": "ACTIVE", "link_layer": "Ethernet", "rate": "400 Gb/sec",
    "interface": "net1", "gids": [{"index": 3, "gid": "fe80::1", "type": "RoCE v2", "interface": "net1"}],
}  # fmt: skip
GOOD = {
    "ports": [PORT], "usable": ["mlx5_0:1"], "asked": 1, "bytes": 1 << 30, "memlock_bytes": -1,
    "capabilities": "0000000000000000", "interfaces": {"net1": {"mtu": 9000, "roce_mtu": 4096}}, "error": "",
}  # fmt: skip
CLOSED = PORT | {"name": "mlx5_1:1", "error": "Permission denied"}
DOWN = PORT | {"name": "mlx5_2:1", "state": "DOWN", "interface": ""}


@pytest.mark.parametrize(
    ("changes", "reason", "words"),
    [
        ({}, None, ""),
        ({"asked": 0, "ports": [], "usable": []}, None, ""),
        ({"ports": [], "usable": []}, "NoUverbsDevice", "no RDMA device can be used: the pod is shown none"),
        (
            {"ports": [CLOSED, DOWN], "usable": []},
            "NoUverbsDevice", "no RDMA device can be used: mlx5_1:1: Permission denied, mlx5_2:1: DOWN",
        ),
        (
            {"asked": 2, "ports": [PORT, CLOSED]},
            "RailsIncomplete", "1 of 2 RDMA devices can be used (mlx5_0:1): mlx5_1:1: Permission denied",
        ),
        ({"asked": 8}, "RailsIncomplete", "1 of 8 RDMA devices can be used (mlx5_0:1)"),
        # Two ports of one device are not two devices.
        ({"asked": 2, "usable": ["mlx5_0:1", "mlx5_0:2"]}, "RailsIncomplete", "1 of 2 RDMA devices"),
        (
            {"memlock_bytes": 8 << 20, "error": "ibv_reg_mr at mlx5_0: Cannot allocate memory"},
            "MemlockTooLow", "memory of 8 MiB may be locked, and 1 GiB of KV is to be registered: raise LimitMEMLOCK",
        ),
        ({"memlock_bytes": 8 << 20, "error": None}, "MemlockTooLow", "memory of 8 MiB"),
        # Each device registers the buffer, and each counts.
        (
            {"memlock_bytes": 3 << 29, "error": None, "asked": 2, "usable": ["mlx5_0:1", "mlx5_1:1"]},
            "MemlockTooLow", "memory of 1.5 GiB may be locked, and 2 GiB of KV",
        ),
        # What was registered counts more than what the limit suggests.
        ({"memlock_bytes": 8 << 20, "error": ""}, None, ""),
        ({"memlock_bytes": 8 << 20, "error": None, "capabilities": "0000000000004000"}, None, ""),
        ({"memlock_bytes": 1 << 40, "error": None}, None, ""),
        ({"error": "no answer within 60 s"}, "RegistrationFailed", "1 GiB can't be registered: no answer within 60 s"),
    ],
)  # fmt: skip
def test_a_report_says_what_is_wrong(changes: dict[str, Any], reason: str | None, words: str) -> None:
    found = problem_of(GOOD | changes)
    assert (found and found.reason) == reason
    assert words in (found.message if found else "")


def test_routers_pass_on_what_the_operator_needs() -> None:
    assert summary(told(GOOD)) == {"usable": ["mlx5_0:1"]}
    field = told(GOOD | {"usable": []})
    assert field[PROBLEM]["reason"] == "NoUverbsDevice"
    passed = summary(field)
    assert passed == {"usable": [], PROBLEM: field[PROBLEM]}
    assert summary(passed) == passed


@given(st.recursive(st.none() | st.integers() | st.text(), lambda c: st.lists(c) | st.dictionaries(st.text(), c)))
def test_anything_that_is_no_report_is_none(value: Any) -> None:
    assert summary(value) is None
    assert parse_report(json.dumps(value)) is None


def test_a_report_is_read_once_it_is_whole() -> None:
    assert parse_report(json.dumps(GOOD)) == GOOD
    assert parse_report(json.dumps(GOOD)[:-3]) is None
    strange: list[dict[str, Any]] = [
        {"ports": 7}, {"ports": ["x"]}, {"asked": "many"}, {"asked": None}, {"capabilities": "?"}, {"interfaces": [1]},
        {"ports": [PORT | {"gids": [1]}]}, {"memlock_bytes": [], "error": None}, {"bytes": "x"}, {"usable": "mlx5_0"},
    ]  # fmt: skip
    for odd in strange:
        assert parse_report(json.dumps(GOOD | odd)) is None, odd
    assert parse_report("") is None


def test_the_log_says_all_of_it_in_a_line() -> None:
    assert words_of(GOOD) == (
        "mlx5_0:1 (ACTIVE, 400 Gb/sec, net1, GIDs 3); net1 MTU 9000, RoCE 4096; memlock unlimited; "
        "CapEff 0000000000000000"
    )
    poor = {"memlock_bytes": 65536, "capabilities": "0", "ports": [{"name": "a:1", "error": "busy"}]}
    assert words_of(poor) == "a:1 (busy, rate unknown, no interface, GIDs none); memlock 64 KiB; CapEff 0"
    assert words_of({"capabilities": "0"}).startswith("no RDMA device; memlock unlimited")


def test_sizes_are_said_in_the_largest_unit() -> None:
    assert [amount(size) for size in (100, 65536, 8 << 20, 3 << 29)] == ["100 bytes", "64 KiB", "8 MiB", "1.5 GiB"]
