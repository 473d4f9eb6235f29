"""PURE: The report of UCX on the transports that it has chosen (UCX_PROTO_INFO).

When an endpoint is used for the first time, UCX prints a table for each kind of operation: the
transport and the device for each range of sizes. The table of ucp_put is that of NIXL's writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from disagg_wire.engines import CONFIGURED, EVIDENCE, NVLINK, PROVED, RDMA, SHM, TCP, TRANSPORTS

_PUT = re.compile(r"remote memory write by ucp_put\*")
_CELLS = re.compile(r"\|([^|]*)\|([^|]*)\|([^|]*)\|\s*$")
_LANE = re.compile(r"\b([a-z][a-z0-9_]*)/([A-Za-z0-9_.:-]+)")
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SIZE = re.compile(r"^(\d+)([KMG]?)$")
# Of several lanes, the slowest says what a transfer uses.
_SLOWEST = (TCP, RDMA, SHM, NVLINK)
_NAMES = {"tcp": TCP, "cuda_ipc": NVLINK, "cma": SHM, "posix": SHM, "sysv": SHM, "xpmem": SHM, "knem": SHM, "self": SHM}
_RDMA = ("rc", "dc", "ud", "gga")
_MAX_CHARS = 256
_WITHOUT_INTERFACE = (SHM, NVLINK)


@dataclass(frozen=True, slots=True)
class Moved:
    """The transport of a transfer, in the words of disagg_wire.engines."""

    transport: str
    evidence: str
    interface: str
    """The network interfaces, or RDMA devices with their ports; empty for memory."""


def moved_of(said: object) -> Moved | None:
    """Return what a peer says that has moved the KV; None if it uses other words."""
    match said:
        case [transport, evidence, str(interface)] if transport in TRANSPORTS and evidence in EVIDENCE:
            return Moved(transport, evidence, interface[:_MAX_CHARS])
    return None


@dataclass(frozen=True, slots=True)
class _Row:
    first: int
    last: int | None
    lanes: tuple[tuple[str, str], ...]


class Report:
    """The tables that have been read so far. Text may come in any pieces that end with a line."""

    def __init__(self) -> None:
        self._endpoint = ""
        self._title = ""
        self._tables: dict[str, list[_Row]] = {}

    def read(self, text: str) -> list[str]:
        """Read more lines, and return those that belong to no table."""
        return [line for line in text.splitlines() if line.strip() and not self._take(line)]

    def _take(self, line: str) -> bool:
        _, bar, cells = line.partition("|")
        if not bar:
            return line.rstrip().endswith("-+")
        if (found := _CELLS.search(line)) is not None:
            self._row(*(cell.strip() for cell in found.groups()))
        elif "cfg#" in cells:
            self._endpoint, self._title = cells.strip(" |"), ""
        else:
            self._title = cells.strip(" |")
            if self._counts:
                self._tables[self._endpoint] = []
        return True

    @property
    def _counts(self) -> bool:
        # Every agent has an endpoint to itself, by which it moves nothing.
        return " self " not in f" {self._endpoint}" and _PUT.search(self._title) is not None

    def _row(self, sizes: str, _method: str, config: str) -> None:
        first, _, last = sizes.partition("..")
        low, high = _bytes(first), _bytes(last or first)
        if self._counts and low is not None:
            self._tables[self._endpoint].append(_Row(low, high, tuple(_LANE.findall(config))))

    @property
    def endpoints(self) -> frozenset[str]:
        """The kinds of endpoints whose writes have been reported."""
        return frozenset(self._tables)

    def moved(self, size_bytes: int, endpoints: Iterable[str]) -> Moved | None:
        """Return what moves a write of this size over one of these kinds of endpoints.

        It is proved if all of them use the same. None if that is not reported.
        """
        found = {self._of(self._tables[name], size_bytes) for name in endpoints if name in self._tables}
        known = sorted((moved for moved in found if moved is not None), key=lambda m: _SLOWEST.index(m.transport))
        if not known:
            return None
        return known[0] if len(found) == 1 else Moved(known[0].transport, CONFIGURED, known[0].interface)

    @staticmethod
    def _of(rows: list[_Row], size_bytes: int) -> Moved | None:
        for row in rows:
            if row.first <= size_bytes and (row.last is None or size_bytes <= row.last):
                lanes = [(name, device) for tl, device in row.lanes if (name := _transport(tl))]
                used = [name for name in _SLOWEST if any(name == lane[0] for lane in lanes)]
                if used:
                    devices = sorted({device for name, device in lanes if name == used[0]})
                    return Moved(used[0], PROVED, "" if used[0] in _WITHOUT_INTERFACE else ",".join(devices))
        return None


def _transport(tl: str) -> str:
    return _NAMES.get(tl) or (RDMA if tl.partition("_")[0] in _RDMA else "")


def _bytes(text: str) -> int | None:
    """Return a size, or None for "inf"."""
    found = _SIZE.match(text)
    return int(found[1]) * _UNITS[found[2]] if found else None
