"""Tests of how a worker prepares for its second network. The interface is the loopback one."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_protocol import fabric_probe
from disagg_worker.server.fabric_start import prepare

PORTS = [
    {"name": f"mlx5_{n}:1", "error": "", "state": "ACTIVE", "interface": "lo", "link_layer": "Ethernet", "gids": []}
    for n in range(2)
]


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Pretend that there are two devices, and return the sizes that are registered."""
    sizes: list[int] = []
    monkeypatch.setattr(fabric_probe, "rdma_ports", lambda interfaces, root: PORTS)

    def register(ports: object, size: int) -> str:
        sizes.append(size)
        return ""

    monkeypatch.setattr(fabric_probe, "register", register)
    return sizes


def test_without_a_network_nothing_is_looked_for() -> None:
    environment: dict[str, str] = {}
    assert prepare("", 0, 1 << 20, 1.0, environment) is None
    assert environment == {}


def test_a_worker_without_devices_lets_ucx_use_no_interface() -> None:
    environment: dict[str, str] = {}
    assert prepare("lo", 0, 1 << 20, 1.0, environment) is None
    assert environment == {}


def test_devices_are_tried_and_told_and_the_user_chooses(devices: list[int]) -> None:
    environment = {"UCX_MAX_RMA_RAILS": "1"}
    found: Any = prepare("lo", 2, 1 << 30, 1.0, environment)
    assert environment == {
        "UCX_NET_DEVICES": "mlx5_0:1,mlx5_1:1",
        "NCCL_IB_HCA": "=mlx5_0:1,mlx5_1:1",
        "UCX_MAX_RMA_RAILS": "1",
    }
    assert devices == [1 << 30]
    assert (found["asked"], found["bytes"], found["usable"]) == (2, 1 << 30, ["mlx5_0:1", "mlx5_1:1"])
    assert "problem" not in found


def test_what_lacks_is_told() -> None:
    found: Any = prepare("lo", 1, 1 << 20, 1.0, {})
    assert found["problem"]["reason"] == "NoUverbsDevice"


def test_an_interface_that_never_comes_is_named() -> None:
    with pytest.raises(TimeoutError, match="net9 has no IPv4 address"):
        prepare("net9", 1, 1 << 20, 0.1, {})
