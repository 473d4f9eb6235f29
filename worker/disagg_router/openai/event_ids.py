"""PURE: The ids of the events of a stream, with which its client says what it has.

An id is the number of events so far. Where an answer has several choices, whose events come in any
order, it has one number for each of them, as in `4.2`, and `.1` after the event with the usage.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from disagg_router.errors import ApiError
from disagg_wire.protocol import MAX_CHOICES

LAST_EVENT_ID = "Last-Event-ID"
_ID = re.compile(rf"[0-9]{{1,8}}(?:\.[0-9]{{1,8}}){{0,{MAX_CHOICES}}}", re.ASCII)


def parse_id(text: str) -> tuple[int, ...]:
    """Return the numbers of an id. Raises ApiError."""
    if not _ID.fullmatch(text):
        raise _wrong("must be the id of an event, or the number of events")
    return tuple(map(int, text.split(".")))


def _wrong(what: str) -> ApiError:
    return ApiError(400, f"{LAST_EVENT_ID}: {what}", code="invalid_value", param=LAST_EVENT_ID)


class Progress:
    """Counts the events of one answer, and tells which of them its client has already."""

    def __init__(self, choices: int, has: Sequence[int] = (0,)) -> None:
        """`has` are the numbers of the last id that the client has got. Raises ApiError."""
        self.any_new = False
        """Whether an event was news to the client."""
        self._counts = [0] * choices
        self._closed = self._has_closing = False
        self._has = list(has)
        if choices > 1 and list(has) == [0]:
            self._has = [0] * choices
        if choices > 1 and len(has) == choices + 1:
            self._has_closing = self._has.pop() > 0
        if len(self._has) != choices:
            raise _wrong(f"this answer has {choices} choices, and so its ids have as many numbers")

    def has(self, index: int) -> int:
        """Return how many events of a choice the client has."""
        return self._has[index]

    def take(self, event: Mapping[str, Any]) -> bool:
        """Count an event, and return whether it is news to the client."""
        is_new = "error" in event or self._count(event)
        self.any_new = self.any_new or is_new
        return is_new

    def _count(self, event: Mapping[str, Any]) -> bool:
        choices = event["choices"]
        if not choices and len(self._counts) > 1:
            self._closed = True
            return not self._has_closing
        index = choices[0]["index"] if choices else 0
        self._counts[index] += 1
        return self._counts[index] > self._has[index]

    def check_end(self) -> None:
        """Raise ApiError if the answer is over, and the client says that it has more of it."""
        if any(has > count for has, count in zip(self._has, self._counts, strict=True)):
            raise _wrong("the whole answer has fewer events")

    def id(self) -> str:
        """Return the id of the last event that was counted."""
        numbers = [max(both) for both in zip(self._counts, self._has, strict=True)]
        return ".".join(map(str, numbers)) + (".1" if self._closed or self._has_closing else "")
