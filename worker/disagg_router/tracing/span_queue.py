"""PURE: The messages with spans that wait for the collector, bounded in spans and in bytes."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SpanMessage:
    """The bytes of one or several traces."""

    content: bytes
    spans: int


@dataclass(slots=True)
class SpanQueue:
    """What waits, the oldest first. What is being sent counts until it is done."""

    most_spans: int
    most_bytes: int
    spans: int = 0
    bytes: int = 0
    _waiting: deque[SpanMessage] = field(default_factory=deque)

    def has_room(self, spans: int) -> bool:
        """Return whether it is worth while to make a message with so many spans."""
        return self.spans + spans <= self.most_spans and self.bytes < self.most_bytes

    def add(self, message: SpanMessage) -> bool:
        """Add a message if there is room, and return whether there was."""
        if not self.has_room(message.spans) or self.bytes + len(message.content) > self.most_bytes:
            return False
        self._waiting.append(message)
        self.spans += message.spans
        self.bytes += len(message.content)
        return True

    def take(self, most_spans: int, most_bytes: int) -> SpanMessage | None:
        """Return the next messages as one, at least one if there is any; `done` gives their room
        back.
        """
        taken: list[SpanMessage] = []
        spans = size = 0
        while self._waiting:
            following = self._waiting[0]
            if taken and (spans + following.spans > most_spans or size + len(following.content) > most_bytes):
                break
            taken.append(self._waiting.popleft())
            spans, size = spans + following.spans, size + len(following.content)
        return SpanMessage(b"".join(message.content for message in taken), spans) if taken else None

    def done(self, message: SpanMessage) -> None:
        """Note that a message that was taken needs no room any more."""
        self.spans -= message.spans
        self.bytes -= len(message.content)

    @property
    def waiting(self) -> int:
        """The number of messages that are not being sent yet."""
        return len(self._waiting)
