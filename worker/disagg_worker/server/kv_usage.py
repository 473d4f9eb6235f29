"""The transport of a worker's KV, as `info`, events, metrics and the log tell it."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

from disagg_wire import series
from disagg_wire.engines import CONFIGURED, PROVED, RDMA, TCP
from disagg_worker.server.metrics import Metrics
from disagg_worker.transfer.nixl_side import NixlSide
from disagg_worker.transfer.ucx_report import Moved

log = logging.getLogger(__name__)


class KvUsage:
    """The transport of the last transfer; before the first one, the one to be expected."""

    def __init__(self, nixl: NixlSide | None, interface: str, metrics: Metrics) -> None:
        self._nixl = nixl
        self._interface = interface
        self._metrics = metrics
        self._lock = threading.Lock()
        best = TCP if nixl is None else nixl.best
        self._last = Moved(best, CONFIGURED, interface if best == TCP else "")
        self._seen = False

    @property
    def last(self) -> Moved:
        return self._last

    def received(self, moved: Moved | None, peer: str) -> Moved:
        """Count a transfer from a peer, by what that has said; None for our own connections.

        The interface is this worker's own, as far as it can be told. What this worker does not have
        itself is proved by nobody's word.
        """
        if moved is None or self._nixl is None:
            return self._note(None, series.RECEIVED, peer)
        if moved.transport != TCP and moved.transport not in self._nixl.reach:
            log.warning("%s says that KV went over %s, which this worker does not have", peer, moved.transport)
            moved = replace(moved, evidence=CONFIGURED)
        own = {TCP: self._interface, RDMA: ",".join(self._nixl.devices)}
        return self._note(replace(moved, interface=own.get(moved.transport, "")), series.RECEIVED, peer)

    def sent(self, moved: Moved | None, peer: str) -> Moved:
        """Count a transfer to a peer; None for our own connections."""
        return self._note(moved, series.SENT, peer)

    def _note(self, moved: Moved | None, direction: str, peer: str) -> Moved:
        moved = moved or Moved(TCP, PROVED, self._interface)
        self._metrics.transfers.labels(direction, moved.transport, moved.evidence).inc()
        with self._lock:
            news, self._seen = not self._seen or moved != self._last, True
            self._last = moved
        if news:
            on = f" on {moved.interface}" if moved.interface else ""
            way = "to" if direction == series.SENT else "from"
            log.info("KV %s %s goes over %s (%s)%s", way, peer, moved.transport, moved.evidence, on)
        return moved

    def words(self, moved: Moved | None) -> dict[str, str]:
        """Return the fields of an event.

        A worker that has nothing but TCP says so in `info`, and need not say it again.
        """
        interface = {"interface": self._interface if moved is None else moved.interface}
        if moved is None or self._nixl is None:
            return interface
        return interface | {"transport": moved.transport, "evidence": moved.evidence}
