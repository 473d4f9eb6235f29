"""PURE: The ledger of decode's KV cache: what tickets may still be promised.

No other engine reserves memory before prefill, so the adapter counts: what its own requests hold,
and what the engine's gauge says. The lower of both is what is free. A promise is soft all the same,
because the engine does not know of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from disagg_protocol.errors import NoCapacity
from disagg_wire.room import Room


@dataclass(slots=True)
class Entry:
    """A request that has been promised room."""

    tokens: int
    """Its tokens so far: prompt and output."""
    reserve: int
    """Output tokens that it has been promised room for and has not generated yet."""
    in_engine_since_s: float | None = None
    """When its engine's work began; None while it waits for KV from prefill."""


class Ledger:
    """The room of one engine."""

    def __init__(self, blocks: int, block_size_tokens: int, seats: int, growth_reserve_tokens: int) -> None:
        self._blocks = blocks
        self._block_size = block_size_tokens
        self._seats = seats
        self._growth = growth_reserve_tokens
        self._entries: dict[str, Entry] = {}
        self._usage = 0.0
        self._read_s = -math.inf

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def blocks(self) -> int:
        return self._blocks

    def _size(self, entry: Entry) -> int:
        return -(-(entry.tokens + entry.reserve) // self._block_size)

    def free_blocks(self) -> int:
        """Return the blocks that are promised to nobody."""
        own = self._blocks - sum(self._size(e) for e in self._entries.values())
        unseen = sum(
            self._size(e)
            for e in self._entries.values()
            if e.in_engine_since_s is None or e.in_engine_since_s >= self._read_s
        )
        by_gauge = math.floor(self._blocks * (1 - self._usage)) - unseen
        return max(0, min(own, by_gauge))

    def read(self, usage: float, now_s: float) -> None:
        """Note what the engine's gauge says at a time: the share of blocks in use, or NaN."""
        if not math.isnan(usage):
            self._usage, self._read_s = min(1.0, max(0.0, usage)), now_s

    def reserve(self, name: str, tokens: int, new_tokens: int) -> None:
        """Promise room for a sequence and its growth. Raises NoCapacity."""
        if len(self._entries) >= self._seats:
            raise NoCapacity(f"all {self._seats} seats are taken")
        entry = Entry(tokens, min(self._growth, new_tokens))
        if (needed := self._size(entry)) > (free := self.free_blocks()):
            raise NoCapacity(f"{needed} KV blocks are needed, {free} are free")
        self._entries[name] = entry

    def begun(self, name: str, now_s: float) -> None:
        """Note that the engine has got a request, so that its gauge will show it."""
        if (entry := self._entries.get(name)) is not None:
            entry.in_engine_since_s = now_s

    def grew(self, name: str, tokens: int) -> None:
        """Note generated tokens."""
        if (entry := self._entries.get(name)) is not None:
            entry.tokens += tokens
            entry.reserve = entry.reserve - tokens if entry.reserve > tokens else 0

    def release(self, name: str) -> None:
        """Forget a request, if it is known."""
        self._entries.pop(name, None)

    def room(self, step_s: float) -> Room:
        """Return the room as the protocol reports it."""
        return Room(
            free_tokens=self.free_blocks() * self._block_size,
            total_tokens=self._blocks * self._block_size,
            free_seats=max(0, self._seats - len(self._entries)),
            total_seats=self._seats,
            step_s=step_s,
        )
