"""The bytes that the network devices of the pod have received (Linux, read from the kernel)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

_NET, _RDMA = Path("/sys/class/net"), Path("/sys/class/infiniband")
# The unit of port_rcv_data (InfiniBand Architecture Specification, PortCounters).
_RDMA_WORD_BYTES = 4


@dataclass(frozen=True, slots=True)
class Received:
    """Bytes since the devices came up."""

    interfaces: dict[str, int] = field(default_factory=dict)
    rdma: dict[str, int] = field(default_factory=dict)


def received(net: Path = _NET, rdma: Path = _RDMA) -> Received:
    """Read the counters; a device that is going away is left out."""
    out = Received()
    for path in net.glob("*/statistics/rx_bytes"):
        if (value := _number(path)) is not None:
            out.interfaces[path.parts[-3]] = value
    for path in rdma.glob("*/ports/*/counters/port_rcv_data"):
        if (value := _number(path)) is not None:
            out.rdma[f"{path.parts[-5]}:{path.parts[-3]}"] = value * _RDMA_WORD_BYTES
    return out


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
