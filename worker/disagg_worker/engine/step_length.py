"""PURE: The time that the next step may take, learned from those that were computed.

Steps are grouped by kind and by size (powers of two). Of the last few of a group the second longest
counts, so that a single slow one changes nothing. The first step of a group may compile, and has
all the time that a compilation takes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

# What a step of a size that was never computed may take: it may compile kernels.
UNKNOWN_S = 20.0
# An announced time that is exceeded by so many times is no longer believed.
ALLOWANCE = 3.0
_KEPT = 16
# The number of tokens in front of a prompt's chunk for which attention takes about as long as the
# rest of the network does. It is little, so that long prompts rather get too much time.
_ATTENTION_TOKENS = 1024


def prefill_size(work: Sequence[tuple[int, int]]) -> float:
    """Return the size of a batch of (tokens, tokens in front of them) in tokens without any in
    front of them.
    """
    return sum(n * (1.0 + (before + n / 2) / _ATTENTION_TOKENS) for n, before in work)


class StepLengths:
    """Learns from the steps that it is told about."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, int], deque[float]] = {}

    def note(self, kind: str, size: float, seconds: float) -> None:
        """Take note of a step that was computed."""
        kept = self._kept.setdefault((kind, _group(size)), deque(maxlen=_KEPT))
        kept.append(seconds / max(1.0, size))

    def expected_s(self, kind: str, size: float) -> float:
        """Return how long a step should take at most."""
        if not (kept := self._kept.get((kind, _group(size)))):
            return UNKNOWN_S
        return sorted(kept)[max(0, len(kept) - 2)] * max(1.0, size)


def _group(size: float) -> int:
    return int(size).bit_length()
