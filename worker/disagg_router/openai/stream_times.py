"""PURE: The times of the tokens of a streamed answer that somebody else gives, from its bytes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from disagg_router.objectives import Objectives

# A longer event is passed on, and tells nothing.
_MOST_BYTES = 1 << 20
_DATA = b"data:"
_TEXT = ("content", "reasoning_content", "reasoning", "tool_calls", "function_call")


@dataclass(slots=True)
class StreamTimes:
    """What the events of a stream tell. The time is that of the caller.

    An event with text counts as one token, unless the stream ends with the usage of its only
    choice.
    """

    started_s: float
    first_s: float | None = None
    """The time of the first token, or None."""
    last_s: float = 0.0
    tokens: int = 0
    ended: bool = False
    """Whether the stream said that the answer is whole."""
    failed: bool = False
    _rest: bytes = b""
    _choices: int = 1
    _skips: bool = False

    def feed(self, piece: bytes, now_s: float) -> None:
        """Take the next bytes of the stream."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        if len(self._rest) > _MOST_BYTES:
            self._rest, self._skips = b"", True
        for line in lines:
            if self._skips:  # the end of a line that was too long
                self._skips = False
            elif line.startswith(_DATA):
                self._event(line.removeprefix(_DATA).strip(), now_s)

    def _event(self, text: bytes, now_s: float) -> None:
        if text == b"[DONE]":
            self.ended = True
            return
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        if event.get("error"):
            self.failed = True
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._choice(choice, now_s)
        usage = event.get("usage")
        counted = usage.get("completion_tokens") if isinstance(usage, dict) else None
        if isinstance(counted, int) and counted >= self.tokens and self._choices == 1:
            self.tokens = counted

    def _choice(self, choice: dict[str, Any], now_s: float) -> None:
        if choice.get("index", 0) != 0:
            self._choices = 2
            return
        delta = choice.get("delta")
        said = choice.get("text") or (isinstance(delta, dict) and any(delta.get(name) for name in _TEXT))
        if not said:
            return
        self.tokens += 1
        self.last_s = now_s
        if self.first_s is None:
            self.first_s = now_s

    @property
    def ttft_s(self) -> float | None:
        """The seconds to the first token, or None."""
        return None if self.first_s is None else self.first_s - self.started_s

    @property
    def tpot_s(self) -> float | None:
        """The seconds per token after the first one, or None."""
        if self.first_s is None or self.tokens < 2:
            return None
        return (self.last_s - self.first_s) / (self.tokens - 1)

    def kept(self, objectives: Objectives, now_s: float) -> bool | None:
        """Return whether the answer met the objectives, or None if nobody can tell.

        One whose client has left tells something only if it was late by then.
        """
        if self.failed:
            return False
        waited_s = now_s - self.started_s if self.ttft_s is None else self.ttft_s
        if objectives.ttft_s is not None and waited_s > objectives.ttft_s:
            return False
        if objectives.tpot_s is not None and (self.tpot_s or 0.0) > objectives.tpot_s:
            return False
        return True if self.ended else None
