"""PURE: which worker has most likely the start of a prompt in its prefix cache: the one that this
router sent it to before.

A wrong guess costs a little balance and nothing else. Names are chained hashes of 64 tokens each,
from the tenant on, so a name stands for everything before it.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

STRIDE_TOKENS = 64
_MAX_NAMES = 1 << 16
# Copies of one prefix that are remembered: more are not looked for.
_MAX_HOLDERS = 4


def prefix_names(tokens: Sequence[int], tenant: str) -> list[bytes]:
    """One name for each full stride of the prompt."""
    names: list[bytes] = []
    parent = tenant.encode()
    for start in range(0, len(tokens) - STRIDE_TOKENS + 1, STRIDE_TOKENS):
        part = array("i", tokens[start : start + STRIDE_TOKENS]).tobytes()
        parent = blake2b(parent + b"|" + part, digest_size=16).digest()
        names.append(parent)
    return names


class PrefixMap:
    """Bounded; what was neither sent nor looked for the longest goes first."""

    def __init__(self, max_names: int = _MAX_NAMES) -> None:
        self._max_names = max_names
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def sent(self, names: Sequence[bytes], incarnation: str) -> None:
        """A prompt of these names is computed there."""
        for name in names:
            others = tuple(h for h in self._holders.pop(name, ()) if h != incarnation)
            self._holders[name] = (incarnation, *others)[:_MAX_HOLDERS]
        while len(self._holders) > self._max_names:
            self._holders.popitem(last=False)

    def cached_tokens(self, names: Sequence[bytes]) -> dict[str, int]:
        """By incarnation, how many of a prompt's first tokens it should have."""
        found: dict[str, int] = {}
        for i, name in enumerate(names):
            holders = [h for h in self._holders.get(name, ()) if i == 0 or found.get(h) == i * STRIDE_TOKENS]
            if not holders:
                break
            found |= dict.fromkeys(holders, (i + 1) * STRIDE_TOKENS)
            self._holders.move_to_end(name)
        return found
