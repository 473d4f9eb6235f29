"""The report of the engine's container on the network of the pod, which the adapter passes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from disagg_wire.fabric import MAX_REPORT_BYTES, USABLE, parse_report, told


class FabricFile:
    """The file, which is written once, before the engine starts."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._found: dict[str, Any] | None = None

    def told(self) -> dict[str, Any] | None:
        """Return the field of `info`, or None before there is a report."""
        if self._found is None and self._path is not None:
            report = parse_report(_read(self._path))
            self._found = None if report is None else told(report)
        return self._found

    def ports(self) -> frozenset[str] | None:
        """Return the RDMA ports that the engine can use, or None if they are not known.

        The counters of others, which sysfs may show as well, say nothing of this pod.
        """
        found = self.told()
        return None if found is None else frozenset(map(str, found[USABLE]))


def _read(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(MAX_REPORT_BYTES)
    except OSError:
        return ""
