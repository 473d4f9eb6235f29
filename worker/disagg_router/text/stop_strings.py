"""PURE: stop strings. Text that might be the start of one is held back until it is clear."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Feed text, get what may be shown.

    After a stop string was seen, `stopped` is True and nothing more is shown.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [s for s in stops if s]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        if self.stopped:
            return ""
        self._held += text
        ends = [at + len(s) for s in self._stops if (at := self._held.find(s)) >= 0]
        if ends:
            self.stopped = True
            # As if it had come letter by letter: how the text was split into tokens must not
            # matter.
            seen, self._held = self._held[: min(ends)], ""
            return seen[: min(at for s in self._stops if (at := seen.find(s)) >= 0)]
        keep = max((self._overlap(s) for s in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back, at the end of the request."""
        shown, self._held = ("" if self.stopped else self._held), ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Length of the longest end of the held text that begins `stop`."""
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:n]):
                return n
        return 0
