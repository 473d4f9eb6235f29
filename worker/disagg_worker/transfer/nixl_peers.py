"""The agent that writes, and the peers that it knows. Connections are kept, within a bound."""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from disagg_wire.engines import CONFIGURED
from disagg_worker.transfer.avoided import Avoided
from disagg_worker.transfer.nixl_agent import UCX_LOG, Agent
from disagg_worker.transfer.offers import Offer
from disagg_worker.transfer.sender_timeouts import NixlFailed, TransferFailed
from disagg_worker.transfer.ucx_report import Moved

log = logging.getLogger(__name__)
_MAX_PEERS = 64


@dataclass(frozen=True, slots=True)
class Target:
    """The place where the blocks of one transfer go."""

    writer: Writer
    agent: Agent
    peer: str
    offer: Offer


class Writer:
    """The agent that writes, and the peers that it knows."""

    def __init__(self, make: Callable[[], Agent], *, on_device: bool = False) -> None:
        """Prepare to make an agent, whose memory is that of a device or not."""
        self._make = make
        self.on_device = on_device
        self._lock = threading.Lock()
        self._agent: Agent | None = None
        self._peers: OrderedDict[str, str] = OrderedDict()
        self._busy: dict[str, int] = {}
        self._links: dict[str, frozenset[str]] = {}
        self._avoided = Avoided()

    def open(self) -> Agent:
        """Return the agent, which is made at the first call; that may take a second.

        Raises NixlFailed.
        """
        with self._lock:
            if self._agent is None:
                try:
                    self._agent = self._make()
                except Exception as failure:  # Its errors have no common type.
                    raise NixlFailed(f"NIXL can make no agent: {failure or type(failure).__name__}") from None
            return self._agent

    def target(self, offer: Offer) -> Target:
        """Return the target of an offer, to be left later. Raises TransferFailed."""
        agent = self.open()
        if offer.region.block_bytes != agent.region.block_bytes:
            raise TransferFailed("the blocks of the two workers differ in size")
        with self._lock:
            if offer.agent not in self._peers:
                self._peers[offer.agent] = agent.add_peer(offer.metadata)
            self._peers.move_to_end(offer.agent)
            self._busy[offer.agent] = self._busy.get(offer.agent, 0) + 1
            for name in [n for n in self._peers if not self._busy.get(n)][: max(0, len(self._peers) - _MAX_PEERS)]:
                self._remove(agent, name)
            return Target(self, agent, self._peers[offer.agent], offer)

    def leave(self, target: Target, *, broken: bool) -> None:
        """Note that a target is used no more. One that is broken is connected anew next time."""
        with self._lock:
            name = target.offer.agent
            self._busy[name] -= 1
            if broken and name in self._peers:
                self._remove(target.agent, name)
            if not self._busy[name]:
                del self._busy[name]

    def _remove(self, agent: Agent, name: str) -> None:
        self._links.pop(name, None)
        try:
            agent.remove_peer(self._peers.pop(name))
        except TransferFailed as failure:
            log.info("peer %s: %s", name, failure)

    def avoids(self, decode: str) -> bool:
        """Return whether KV goes to an incarnation over TCP for now, as NIXL has failed with it."""
        with self._lock:
            return self._avoided.contains(decode, time.monotonic())

    def failed(self, decode: str, reason: Exception) -> None:
        with self._lock:
            for_s = self._avoided.failed(decode, time.monotonic())
        log.warning("NIXL to worker %s failed, so that KV goes over TCP for %g s: %s", decode, for_s, reason)

    def worked(self, decode: str) -> None:
        with self._lock:
            self._avoided.worked(decode)

    def connects(self, target: Target) -> bool:
        """Return whether the next write to a peer is the first one, which connects."""
        with self._lock:
            return target.offer.agent not in self._links

    def moved(self, target: Target, before: frozenset[str]) -> Moved:
        """Return what moves the writes to a peer.

        What UCX has reported since `before` belongs to the peer that was connected meanwhile; a
        peer without a report has an endpoint of a kind that was reported earlier.
        """
        size = target.offer.region.block_bytes
        now = UCX_LOG.endpoints()
        with self._lock:
            kinds = self._links.setdefault(target.offer.agent, now - before or now)
        return UCX_LOG.moved(size, kinds) or Moved(target.offer.transport, CONFIGURED, "")
