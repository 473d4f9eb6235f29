"""Tests of what is known of the transport: only counters prove one."""

from __future__ import annotations

import math

import pytest

from disagg_adapter.transport import Counters, Used, used
from disagg_wire.engines import CONFIGURED, EVIDENCE, NVLINK, PROVED, RDMA, SHM, TCP, TRANSPORTS

MIB = 1 << 20


@pytest.mark.parametrize(
    ("kv", "interfaces", "rdma", "gpus", "expected"),
    [
        (0.0, {}, {}, False, Used(TCP, CONFIGURED, "net1")),
        (math.nan, {"net1": MIB}, {}, False, Used(TCP, CONFIGURED, "net1")),
        (1000.0, {"net1": MIB}, {}, False, Used(TCP, CONFIGURED, "net1")),
        (MIB, {"net1": MIB, "eth0": 10 * MIB}, {}, False, Used(TCP, PROVED, "net1")),
        (MIB, {"net1": 5, "eth0": MIB, "a": 3}, {}, False, Used(TCP, PROVED, "eth0")),
        (MIB, {"net1": MIB}, {"mlx5_0:1": 0, "mlx5_1:1": MIB}, True, Used(RDMA, PROVED, "mlx5_1:1")),
        # UCX spreads a transfer over the rails; chatter on another device is no share of it.
        (
            MIB, {"net1": MIB}, {"mlx5_0:1": MIB // 2, "mlx5_1:1": MIB // 2, "mlx5_2:1": 100}, True,
            Used(RDMA, PROVED, "mlx5_0:1,mlx5_1:1"),
        ),
        (MIB, {"net1": 0.95 * MIB}, {}, True, Used(TCP, PROVED, "net1")),
        (MIB, {"net1": 10}, {"mlx5_0:1": 10}, True, Used(NVLINK, CONFIGURED, "")),
        (MIB, {"net1": 10}, {}, False, Used(SHM, CONFIGURED, "")),
        (MIB, {}, {}, False, Used(SHM, CONFIGURED, "")),
    ],
)  # fmt: skip
def test_the_device_that_received_as_much_as_was_moved_carried_it(
    kv: float, interfaces: dict[str, int], rdma: dict[str, int], gpus: bool, expected: Used
) -> None:
    found = used(Counters(kv, interfaces, rdma), "net1", "auto", gpus=gpus)
    assert found == expected
    assert found.transport in TRANSPORTS
    assert found.evidence in EVIDENCE


def test_before_anything_has_moved_the_spec_says_it() -> None:
    assert used(Counters(0.0, {}, {}), "net1", RDMA, gpus=True) == Used(RDMA, CONFIGURED, "net1")
    assert used(Counters(0.0, {}, {}), "net1", TCP, gpus=True) == Used(TCP, CONFIGURED, "net1")
