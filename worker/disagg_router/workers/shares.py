"""PURE: The parts of the requests that groups of workers get while one group replaces another."""

from __future__ import annotations

from collections.abc import Sequence


def pair_shares(groups: Sequence[tuple[int, int]]) -> list[float]:
    """Return the share of each group of (prefill workers, decode workers), which add up to at most
    1.

    How many workers of one role go with one of the other is not known here. Therefore, the role
    counts of which a group has the smaller part of all.
    """
    prefills, decodes = (sum(group[i] for group in groups) for i in (0, 1))
    parts = [[mine / total for mine, total in ((p, prefills), (d, decodes)) if total] for p, d in groups]
    return [min(part, default=1.0 / len(groups)) for part in parts]


def drawn(shares: Sequence[float], roll: float) -> int:
    """Return the index of the share that 0 <= `roll` < 1 falls on."""
    left = roll * sum(shares)
    for i, share in enumerate(shares):
        left -= share
        if left < 0:
            return i
    return len(shares) - 1
