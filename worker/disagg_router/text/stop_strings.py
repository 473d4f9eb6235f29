"""PURE: Stop strings in a stream of text.

Text that might be the start of a stop string is held back until that is clear.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """A filter that is fed text and returns what may be shown.

    Once a stop string has been seen, `stopped` is True and nothing more is shown.
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
            # The result is as if the text had come letter by letter: how it was split into tokens
            # must not matter.
            seen, self._held = self._held[: min(ends)], ""
            return seen[: min(at for s in self._stops if (at := seen.find(s)) >= 0)]
        keep = max((self._overlap(s) for s in self._stops), default=0)
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown

    def flush(self) -> str:
        """Return the text that was held back, at the end of the request."""
        shown, self._held = ("" if self.stopped else self._held), ""
        return shown

    def _overlap(self, stop: str) -> int:
        """Return the length of the longest end of the held text that `stop` begins with."""
        for n in range(min(len(stop) - 1, len(self._held)), 0, -1):
            if self._held.endswith(stop[:n]):
                return n
        return 0
