"""PURE: The time that the next step may take, learned from those that were computed.

Steps are grouped by kind and by size (powers of two). Of the last few of a group the second longest
counts, so that a single slow one changes nothing. The first step of a kind, and where kernels are
compiled for a size the first one of a group, has all the time that a compilation takes. Elsewhere a
group without a step is judged by the next smaller one, or else by the next larger one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

# What a step may take that may compile kernels.
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
    """Learns from the steps that it is told about.

    `compiles` says that the first step of a group may compile kernels.
    """

    def __init__(self, *, compiles: bool) -> None:
        self._compiles = compiles
        self._kept: dict[tuple[str, int], deque[float]] = {}

    def note(self, kind: str, size: float, seconds: float) -> None:
        """Take note of a step that was computed."""
        kept = self._kept.setdefault((kind, _group(size)), deque(maxlen=_KEPT))
        kept.append(seconds / max(1.0, size))

    def expected_s(self, kind: str, size: float) -> float:
        """Return how long a step should take at most."""
        group = _group(size)
        known = [of for of_kind, of in self._kept if of_kind == kind]
        if not known or (self._compiles and group not in known):
            return UNKNOWN_S
        nearest = max((of for of in known if of <= group), default=min(known))
        kept = self._kept[kind, nearest]
        # A step that is smaller than all before takes no longer than the smallest of them.
        return sorted(kept)[max(0, len(kept) - 2)] * max(1.0, size, float(1 << nearest >> 1))


def _group(size: float) -> int:
    return int(size).bit_length()
