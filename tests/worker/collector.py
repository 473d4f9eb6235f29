"""A sink that keeps a request's events and lets a test wait for them, with a deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable

from disagg_protocol.events import EndEvent, ErrorEvent, Event, TokenEvent

DEADLINE_S = 240.0


class Collector:
    """An EventSink that keeps the events.

    Events after the last one are kept in `late`, which a test asserts to be empty.
    """

    def __init__(self, on_event: Callable[[Event], None] | None = None) -> None:
        self._changed = threading.Condition()
        self._on_event = on_event
        self.events: list[TokenEvent] = []
        self.end: EndEvent | ErrorEvent | None = None
        self.late: list[Event] = []

    def __call__(self, event: Event) -> None:
        with self._changed:
            if self.end is not None:
                self.late.append(event)
            elif isinstance(event, TokenEvent):
                self.events.append(event)
            else:
                self.end = event
            self._changed.notify_all()
        if self._on_event is not None:
            self._on_event(event)

    @property
    def tokens(self) -> list[int]:
        return [e.token for e in self.events]

    def wait(self) -> EndEvent | ErrorEvent:
        """Wait for the last event and return it. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.end is not None, DEADLINE_S) or self.end is None:
                raise TimeoutError(f"no end after {len(self.events)} tokens")
            return self.end

    def wait_tokens(self, n: int) -> None:
        """Wait until n tokens have arrived, or the last event. Raises TimeoutError."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self.events) >= n or self.end is not None, DEADLINE_S):
                raise TimeoutError(f"{len(self.events)} of {n} tokens came")

    def finished(self) -> list[int]:
        """Return all tokens of a request, which must have ended well."""
        end = self.wait()
        if not isinstance(end, EndEvent) or self.late:
            raise AssertionError(f"ended with {end}, after it {self.late}")
        return self.tokens
