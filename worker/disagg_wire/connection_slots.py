"""PURE: The connections of one port, and which of them goes when there are too many."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Generic, TypeVar

ConnectionT = TypeVar("ConnectionT")


@dataclass(slots=True)
class _Place:
    """A connection that is open."""

    peer: str
    engaged: bool = False


@dataclass(slots=True)
class ConnectionSlots(Generic[ConnectionT]):
    """The open connections, at most `most` of them.

    One is engaged while it has brought work, and others give way to nobody then. Whoever only
    connects, or dawdles, has a place as long as nobody else needs it: of the peer with the most
    connections of that kind, the oldest goes. So nobody shuts others out by connecting often.
    """

    most: int
    _places: dict[ConnectionT, _Place] = field(default_factory=dict)
    _loose: dict[str, dict[ConnectionT, None]] = field(default_factory=dict)
    """Those that are not engaged by peer, the one that has been so for longest first."""

    def __len__(self) -> int:
        return len(self._places)

    def enter(self, connection: ConnectionT, peer: str) -> ConnectionT | None:
        """Add a connection. Returns the one that must be closed for it, which may be itself."""
        self._places[connection] = _Place(peer)
        self._loose.setdefault(peer, {})[connection] = None
        if len(self._places) <= self.most:
            return None
        largest = max(self._loose, key=lambda name: len(self._loose[name]))
        victim = next(iter(self._loose[largest]))
        self.leave(victim)
        return victim

    def engage(self, connection: ConnectionT) -> None:
        """Note that a connection has brought work."""
        place = self._places.get(connection)
        if place is not None and not place.engaged:
            place.engaged = True
            self._forget(connection, place.peer)

    def disengage(self, connection: ConnectionT) -> None:
        """Note that its work is done."""
        place = self._places.get(connection)
        if place is not None and place.engaged:
            place.engaged = False
            self._loose.setdefault(place.peer, {})[connection] = None

    def leave(self, connection: ConnectionT) -> None:
        """Remove a connection, if it is here."""
        place = self._places.pop(connection, None)
        if place is not None and not place.engaged:
            self._forget(connection, place.peer)

    def peers(self) -> Counter[str]:
        """Return the number of connections of each peer."""
        return Counter(place.peer for place in self._places.values())

    def _forget(self, connection: ConnectionT, peer: str) -> None:
        of_peer = self._loose[peer]
        del of_peer[connection]
        if not of_peer:
            del self._loose[peer]
