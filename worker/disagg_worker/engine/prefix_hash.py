"""PURE: The names of the content of full KV blocks.

The KV of a block depends on all tokens before it, so its name does too: name[i] =
BLAKE2b(name[i-1] | tokens of block i). The hash (RFC 7693) is keyed with bytes that are drawn when
the engine starts, and name[-1] is made from the tenant.

Nobody outside knows the key, so nobody can search for two prompts with the same name, and tenants
never share a name.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from hashlib import blake2b

_NAME_BYTES = 16


class PrefixNames:
    """Names blocks of `block_size_tokens` tokens. The `key` is 16 to 64 secret bytes."""

    def __init__(self, key: bytes, block_size_tokens: int) -> None:
        self._key = key
        self._size = block_size_tokens

    def extend(self, names: list[bytes], tokens: Sequence[int], tenant: str) -> None:
        """Append the names of the full blocks of `tokens` (IDs below 2^31) that `names` lacks."""
        for i in range(len(names), len(tokens) // self._size):
            parent = names[i - 1] if i else self._digest(b"tenant", tenant.encode())
            block = array("i", tokens[i * self._size : (i + 1) * self._size]).tobytes()
            names.append(self._digest(parent, block))

    def _digest(self, parent: bytes, content: bytes) -> bytes:
        return blake2b(parent + content, key=self._key, digest_size=_NAME_BYTES).digest()
