"""PURE: The bound on everything that waits in this router, for room or for a model.

Where there is no more room, no key keeps others out by what it has waiting already: the place that
came last of those that have most of it, or of a lower priority, is given to the newcomer.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from disagg_router.admission.asker import NOBODY, Asker


@dataclass(eq=False, slots=True)
class Place:
    """A place of one waiting request."""

    size_bytes: int
    asker: Asker = NOBODY
    firm: bool = False
    """Whether it has waited before or has emitted tokens: it is not pushed out by newcomers."""
    told: Callable[[], None] = lambda: None
    """Called when it is pushed out."""
    pushed_out: bool = False


@dataclass(slots=True)
class _Held:
    """What one asker has waiting."""

    places: dict[Place, None]
    size_bytes: int = 0


class Backlog:
    """The number of waiting requests, and their size, over all queues. It also numbers them."""

    def __init__(self, max_requests: int, max_bytes: float = math.inf) -> None:
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._numbers = itertools.count()
        self._held: dict[Asker, _Held] = {}
        self.requests = 0
        self.size_bytes = 0

    def number(self) -> int:
        """Return a number for a request; later requests have greater ones."""
        return next(self._numbers)

    def has_room(self, size_bytes: int) -> bool:
        return self.requests < self._max_requests and self.size_bytes + size_bytes <= self._max_bytes

    def make_room(self, place: Place) -> bool:
        """Return whether there is room for a place, if need be that of others who have more."""
        if not self._max_requests or place.size_bytes > self._max_bytes:
            return False
        while not self.has_room(place.size_bytes):
            out = self._last_of_the_largest(place)
            if out is None:
                return False
            self._remove(out)
            out.pushed_out = True
            out.told()
        return True

    @contextlib.contextmanager
    def holds(self, place: Place) -> Iterator[None]:
        """Count a request as waiting, until the block ends or it is pushed out."""
        held = self._held.setdefault(place.asker, _Held({}))
        held.places[place] = None
        held.size_bytes += place.size_bytes
        self.requests += 1
        self.size_bytes += place.size_bytes
        try:
            yield
        finally:
            if not place.pushed_out:
                self._remove(place)

    def _remove(self, place: Place) -> None:
        held = self._held[place.asker]
        del held.places[place]
        held.size_bytes -= place.size_bytes
        if not held.places:
            del self._held[place.asker]
        self.requests -= 1
        self.size_bytes -= place.size_bytes

    def _last_of_the_largest(self, place: Place) -> Place | None:
        """Return the place that is given up for a new one, or None if none is."""
        by_number = self.requests >= self._max_requests

        def share(held: _Held) -> int:
            return len(held.places) if by_number else held.size_bytes

        mine = self._held.get(place.asker, _Held({}))
        after = share(mine) + (1 if by_number else place.size_bytes)
        found = [
            (asker.priority, -share(held), asker, held)
            for asker, held in self._held.items()
            if asker.priority < place.asker.priority
            or (asker.priority == place.asker.priority and asker != place.asker and share(held) > after)
        ]
        for _, _, _, held in sorted(found, key=lambda entry: entry[:3]):
            if (last := next((p for p in reversed(held.places) if not p.firm), None)) is not None:
                return last
        return None
