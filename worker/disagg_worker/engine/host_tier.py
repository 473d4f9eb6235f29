"""PURE: The host tier, which keeps evicted KV blocks as bytes in ordinary memory, up to a bound.

The entry that was not put or found for longest is dropped first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from disagg_worker.engine.block_pool import StaleReference


class HostRef(NamedTuple):
    """A reference to an entry as it was found."""

    name: bytes
    generation: int


class HostTier:
    """The entries by name (prefix_hash).

    A block is either here or in the pool: `take` removes it.
    """

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.held_bytes = 0
        self._entries: OrderedDict[bytes, tuple[int, bytes]] = OrderedDict()
        self._generation = 0

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, name: bytes, content: bytes) -> None:
        """Keep the bytes of a block, unless they are larger than the whole tier."""
        self.discard(name)
        if len(content) > self.capacity_bytes:
            return
        while self.held_bytes + len(content) > self.capacity_bytes:
            _, (_, old) = self._entries.popitem(last=False)
            self.held_bytes -= len(old)
        self._generation += 1
        self._entries[name] = (self._generation, content)
        self.held_bytes += len(content)

    def find(self, name: bytes) -> HostRef | None:
        """Return a reference to the entry of this name, which counts as used now."""
        if (entry := self._entries.get(name)) is None:
            return None
        self._entries.move_to_end(name)
        return HostRef(name, entry[0])

    def take(self, ref: HostRef) -> bytes:
        """Remove an entry and return its bytes.

        Raises StaleReference if it has been dropped or replaced since it was found.
        """
        entry = self._entries.get(ref.name)
        if entry is None or entry[0] != ref.generation:
            raise StaleReference("the host copy of a block has gone")
        self.discard(ref.name)
        return entry[1]

    def discard(self, name: bytes) -> None:
        if (entry := self._entries.pop(name, None)) is not None:
            self.held_bytes -= len(entry[1])
