"""The frames of a transfer that wait to be sent, and its end.

It holds no copies: the blocks are those that the engine holds until the transfer has
ended, so its size is bounded by theirs.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

from disagg_protocol.events import ErrorEvent, TokenEvent
from disagg_worker.values.kv_blocks import KvBlocks


@dataclass(frozen=True, slots=True)
class Part:
    """The blocks of one layer that go into one frame."""

    layer: int
    first_block: int
    blocks: KvBlocks
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Commit:
    """The good end of a transfer."""

    first_token: TokenEvent
    computed_at_s: float


End = Commit | ErrorEvent


class Outbox:
    """A queue of parts, from which several connections may take, followed by one end.

    Its methods may be called from any thread, and only `next` waits.
    """

    def __init__(self, frame_bytes: int) -> None:
        self._frame_bytes = frame_bytes
        self._changed = threading.Condition()
        self._parts: deque[Part] = deque()
        self._waiting_bytes = 0
        self._end: End | None = None
        self._failure: Exception | None = None

    def layer(self, layer: int, first_block: int, blocks: KvBlocks) -> None:
        """Add the blocks of a layer, split into frames. Nothing is added behind the end."""
        block_bytes, n = blocks.cache.layout.layer_block_bytes, len(blocks.ids)
        step = max(1, self._frame_bytes // block_bytes)
        groups = [(start, blocks.part(start, start + step)) for start in range(0, n, step)]
        with self._changed:
            if self._end is not None:
                return
            for start, group in groups:
                size_bytes = len(group.ids) * block_bytes
                self._parts.append(Part(layer, first_block + start, group, size_bytes))
                self._waiting_bytes += size_bytes
            self._changed.notify_all()

    def end(self, end: End) -> None:
        """Add the end; the first one counts."""
        with self._changed:
            self._end = self._end or end
            self._changed.notify_all()

    def fail(self, failure: Exception) -> None:
        """Make `next` raise for all who call it; the first failure counts."""
        with self._changed:
            self._failure = self._failure or failure
            self._changed.notify_all()

    @property
    def failure(self) -> Exception | None:
        return self._failure

    @property
    def waiting_bytes(self) -> int:
        return self._waiting_bytes

    def next(self, timeout_s: float) -> Part | End | None:
        """Return the next part, the end once there are no more parts, or None after the timeout.

        Raises the failure, if there is one.
        """
        with self._changed:
            self._changed.wait_for(self._ready, timeout_s)
            if self._failure is not None:
                raise self._failure
            if self._parts:
                part = self._parts.popleft()
                self._waiting_bytes -= part.size_bytes
                return part
            return self._end

    def _ready(self) -> bool:
        return bool(self._parts) or self._end is not None or self._failure is not None
