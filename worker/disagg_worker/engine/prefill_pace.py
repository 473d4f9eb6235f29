"""PURE: The duration of prefill batches, learned from those that were computed.

A batch of n tokens takes a + b*n seconds. Batches are grouped by size (powers of two), and the
median of the last few of each size counts, so that a single slow batch (the first one after the
start, or a pause of the machine) changes nothing. A size with too few batches does not count
either. While no size counts, batches are taken to need no time, so that no prompt is called late
without evidence.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from math import inf
from statistics import median

# The last _KEPT batches of a size count, if there are at least _ENOUGH, so that one of them may be
# slow. Batches are forgotten after this many others.
_KEPT = 5
_ENOUGH = 3
_FORGOTTEN_AFTER = 500
_LEAST_S = 1e-6


@dataclass(frozen=True, slots=True)
class Pace:
    """The speed of prefill: a batch of n tokens takes fixed_s + token_s * n seconds, and at most
    most_s.
    """

    fixed_s: float = 0.0
    token_s: float = 0.0
    most_s: float = inf
    between_s: float = 0.0
    """The time for which a batch has to wait after another one."""

    def batch_s(self, tokens: int) -> float:
        return min(self.most_s, self.fixed_s + self.token_s * tokens)

    def alone_s(self, tokens: int, chunk_tokens: int) -> float:
        """Return the time that `tokens` tokens take in chunks, with nothing else in the batches."""
        if tokens <= 0:
            return 0.0
        whole, rest = divmod(tokens - 1, chunk_tokens)
        return whole * (self.batch_s(chunk_tokens) + self.between_s) + self.batch_s(rest + 1)


UNKNOWN = Pace()


class PaceMeter:
    """Learns the pace from the batches that it is told about."""

    def __init__(self) -> None:
        self._batches = 0
        self._sizes: dict[int, deque[tuple[int, int, float]]] = {}
        self._known: Pace | None = UNKNOWN

    def note(self, tokens: int, seconds: float) -> None:
        """Take note of a batch that was computed."""
        self._batches += 1
        kept = self._sizes.setdefault(tokens.bit_length(), deque(maxlen=_KEPT))
        kept.append((self._batches, tokens, seconds))
        self._known = None

    def pace(self, between_s: float = 0.0) -> Pace:
        if self._known is None:
            self._known = self._learned()
        known = self._known
        return Pace(known.fixed_s, known.token_s, known.most_s, between_s) if between_s else known

    def _learned(self) -> Pace:
        points = []
        for size, kept in list(self._sizes.items()):
            while kept and kept[0][0] <= self._batches - _FORGOTTEN_AFTER:
                kept.popleft()
            if not kept:
                del self._sizes[size]
            if len(kept) >= _ENOUGH:
                points.append((median(n for _, n, _ in kept), max(_LEAST_S, median(s for _, _, s in kept))))
        if not points:
            return UNKNOWN
        if len(points) == 1:
            # The time may be due to the tokens or to the batch as such. It cannot be due to both in
            # full, so no batch is expected to take longer than this one.
            n, seconds = points[0]
            return Pace(0.0, seconds / n, seconds)
        return _line(points)


def _line(points: list[tuple[float, float]]) -> Pace:
    """Return the line with the least relative errors; neither part of it is negative."""
    weights = [1 / (s * s) for _, s in points]
    total = sum(weights)
    mean_n = sum(w * n for w, (n, _) in zip(weights, points, strict=True)) / total
    mean_s = sum(w * s for w, (_, s) in zip(weights, points, strict=True)) / total
    spread = sum(w * (n - mean_n) ** 2 for w, (n, _) in zip(weights, points, strict=True))
    slope = sum(w * (n - mean_n) * (s - mean_s) for w, (n, s) in zip(weights, points, strict=True)) / spread
    if slope <= 0:
        return Pace(mean_s, 0.0)
    if mean_s - slope * mean_n < 0:
        squares = sum(w * n * n for w, (n, _) in zip(weights, points, strict=True))
        return Pace(0.0, sum(w * n * s for w, (n, s) in zip(weights, points, strict=True)) / squares)
    return Pace(mean_s - slope * mean_n, slope)
