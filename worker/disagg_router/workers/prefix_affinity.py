"""PURE: A guess at the worker that has the start of a prompt in its prefix cache.

It is the worker that this router sent it to before: for prefill the one that computed it, for
decode the one that generated its answer, which is part of the next prompt of a chat. A wrong guess
costs a little balance and nothing else. Names are chained hashes of 64 tokens each, starting with
the tenant and the LoRA adapter, so a name stands for everything before it.
"""

from __future__ import annotations

import json
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b

STRIDE_TOKENS = 64
_MAX_NAMES = 1 << 16
# How many copies of one prefix are remembered; more are not looked for.
_MAX_HOLDERS = 4


def prefix_names(tokens: Sequence[int], tenant: str, adapter: str = "") -> list[bytes]:
    """Return one name for each full stride of the prompt."""
    names: list[bytes] = []
    parent = json.dumps([tenant, adapter]).encode()
    for start in range(0, len(tokens) - STRIDE_TOKENS + 1, STRIDE_TOKENS):
        part = array("i", tokens[start : start + STRIDE_TOKENS]).tobytes()
        parent = blake2b(parent + b"|" + part, digest_size=16).digest()
        names.append(parent)
    return names


class PrefixMap:
    """A bounded map from names to workers.

    The name that has not been sent or looked for the longest is dropped first.
    """

    def __init__(self, max_names: int = _MAX_NAMES) -> None:
        self._max_names = max_names
        self._holders: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._holders)

    def sent(self, names: Sequence[bytes], incarnation: str) -> None:
        """Record that a prompt with these names is computed by the worker."""
        for name in names:
            others = tuple(h for h in self._holders.pop(name, ()) if h != incarnation)
            self._holders[name] = (incarnation, *others)[:_MAX_HOLDERS]
        while len(self._holders) > self._max_names:
            self._holders.popitem(last=False)

    def not_sent(self, names: Sequence[bytes], incarnation: str) -> None:
        """Forget that the worker has these names."""
        for name in names:
            left = tuple(h for h in self._holders.get(name, ()) if h != incarnation)
            if left:
                self._holders[name] = left
            else:
                self._holders.pop(name, None)

    def cached_tokens(self, names: Sequence[bytes]) -> dict[str, int]:
        """Return how many of a prompt's first tokens each worker should have, by incarnation."""
        found: dict[str, int] = {}
        for i, name in enumerate(names):
            holders = [h for h in self._holders.get(name, ()) if i == 0 or found.get(h) == i * STRIDE_TOKENS]
            if not holders:
                break
            found |= dict.fromkeys(holders, (i + 1) * STRIDE_TOKENS)
            self._holders.move_to_end(name)
        return found
