"""PURE: The decode workers to which NIXL has failed. KV goes to them over TCP, for a time that
doubles with every further failure; a transfer that has worked ends it.
"""

from __future__ import annotations

from collections import OrderedDict

FIRST_S = 10.0
MOST_S = 600.0
_MOST_PEERS = 256


class Avoided:
    """The decode workers to be avoided by NIXL, by their incarnations, within a bound."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """The length of the present or last time, and its end."""

    def failed(self, peer: str, now_s: float) -> float:
        """Note a failure, and return for how many seconds the peer is avoided now."""
        last_s, until_s = self._peers.pop(peer, (0.0, 0.0))
        # What failed beside the first failure says nothing new.
        for_s = last_s if now_s < until_s else min(MOST_S, max(FIRST_S, 2 * last_s))
        self._peers[peer] = for_s, max(until_s, now_s + for_s)
        while len(self._peers) > _MOST_PEERS:
            self._peers.popitem(last=False)
        return for_s

    def worked(self, peer: str) -> None:
        """Note that a transfer has worked."""
        self._peers.pop(peer, None)

    def contains(self, peer: str, now_s: float) -> bool:
        """Return whether a peer is avoided now."""
        return now_s < self._peers.get(peer, (0.0, 0.0))[1]
