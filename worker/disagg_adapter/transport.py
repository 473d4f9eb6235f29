"""PURE: What moved the KV, from the engine's count of bytes and the counters of the devices.

NIXL tells how many bytes it moved, and the kernel how many each device received. The interface, or
the RDMA devices together, that received at least as many as NIXL moved carried them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from disagg_wire.engines import CONFIGURED, NVLINK, PROVED, RDMA, SHM, TCP

# The counters of the devices are read a moment apart from the engine's.
_SHARE = 0.9
_LEAST_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Used:
    """The transport of a worker's KV."""

    transport: str
    """One of disagg_wire.engines.TRANSPORTS."""
    evidence: str
    """`Proved` or `Configured`."""
    interface: str
    """The network interface, or the RDMA devices with their ports, separated by commas; "" for
    memory and NVLink.
    """


@dataclass(frozen=True, slots=True)
class Counters:
    """The bytes that have arrived since the adapter started."""

    kv: float
    """What the engine has read from others."""
    interfaces: Mapping[str, int]
    """By network interface."""
    rdma: Mapping[str, int]
    """By RDMA device and port, as in `mlx5_0:1`."""


def used(counters: Counters, interface: str, declared: str, *, gpus: bool) -> Used:
    """Return the transport in use.

    `interface` is the one that the engine was told to use, `declared` the transport of the spec.
    """
    configured = RDMA if declared == RDMA else TCP
    if not counters.kv >= _LEAST_BYTES:
        return Used(configured, CONFIGURED, interface)
    enough = counters.kv * _SHARE
    if sum(counters.rdma.values()) >= enough:  # UCX spreads a transfer over several devices
        return Used(RDMA, PROVED, ",".join(_carriers(counters.rdma)))
    if counters.interfaces.get(interface, 0) >= enough:
        return Used(TCP, PROVED, interface)
    others = [name for name, received in sorted(counters.interfaces.items()) if received >= enough]
    if others:
        return Used(TCP, PROVED, others[0])
    # No network device carried it, so it stayed within the machine. Which way is not counted.
    return Used(NVLINK if gpus else SHM, CONFIGURED, "")


def _carriers(received: Mapping[str, int]) -> list[str]:
    """Return the devices that carried a share of a transfer, and no mere chatter."""
    least = sum(received.values()) * (1 - _SHARE) / len(received)
    return [device for device, amount in sorted(received.items()) if amount > least]
