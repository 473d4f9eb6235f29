"""PURE: Who asks, as far as the queues need to know."""

from __future__ import annotations

from typing import NamedTuple


class Asker(NamedTuple):
    """The line in which a request waits: requests of one line are of one API key."""

    priority: int = 0
    """Lines of a higher priority go first."""
    share: str = ""
    """The name of the API key's share of the work; it is not the key."""


NOBODY = Asker()
