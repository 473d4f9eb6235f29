"""Tests of the names of the interfaces of a network that is attached several times."""

from __future__ import annotations

import pytest

from disagg_wire.rails import rail_interfaces


@pytest.mark.parametrize(
    ("first", "count", "names"),
    [
        ("net1", 1, ("net1",)),
        ("net1", 0, ("net1",)),
        ("net1", 3, ("net1", "net2", "net3")),
        ("rdma0", 2, ("rdma0", "rdma1")),
        ("net9", 2, ("net9", "net10")),
        ("fabric", 3, ("fabric", "fabric1", "fabric2")),
        ("1", 2, ("1", "2")),
    ],
)
def test_interfaces_are_counted_on_from_the_first(first: str, count: int, names: tuple[str, ...]) -> None:
    assert rail_interfaces(first, count) == names
