"""PURE: may one more sequence be decoded here, and who goes when blocks run out.

A request is admitted with blocks for its tokens and for a part of its growth (most requests end
long before their max_tokens). When a running sequence needs a block and none is free, the newest
sequence gives its own up and is computed again later, so the oldest always goes on and every
request ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from disagg_worker.engine.block_pool import blocks_for
from disagg_worker.values.errors import InvalidInput, NoCapacity


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a decode engine has.

    `committed`: sequences running, waiting to run or reserved; `blocks_free`: not promised to any
    of them. `growth_tokens`: how much of its growth a request is admitted with.
    """

    block_size_tokens: int
    blocks_total: int
    blocks_free: int
    committed: int
    max_running: int
    max_model_len: int
    growth_tokens: int


def check_length(tokens: int, capacity: Capacity) -> None:
    """Raises InvalidInput for no tokens at all, when there is no room for even one more, or when
    the pool could never hold them.
    """
    if tokens < 1:
        raise InvalidInput("tokens: at least one is needed")
    if tokens >= capacity.max_model_len:
        raise InvalidInput(f"tokens: {tokens} and at least one more do not fit max_model_len {capacity.max_model_len}")
    check_blocks(tokens, capacity)


def check_blocks(tokens: int, capacity: Capacity) -> None:
    """Raises InvalidInput when the whole pool could not hold them."""
    needed = blocks_for(tokens, capacity.block_size_tokens)
    if needed > capacity.blocks_total:
        raise InvalidInput(f"tokens: {tokens} in all need {needed} KV blocks, this worker has {capacity.blocks_total}")


def start_blocks(tokens: int, most_tokens: int, growth_tokens: int, block_size_tokens: int) -> int:
    """Blocks to start with: `tokens` and up to `growth_tokens` of what may follow, at least one, up
    to `most_tokens` in all.
    """
    return blocks_for(min(max(most_tokens, tokens + 1), tokens + max(1, growth_tokens)), block_size_tokens)


def blocks_to_hold(tokens: int, max_total_tokens: int, capacity: Capacity) -> int:
    """Blocks that the request starts with. Raises InvalidInput (never) or NoCapacity (not now)."""
    check_length(tokens, capacity)
    most_tokens = min(max(max_total_tokens, tokens + 1), capacity.max_model_len)
    check_blocks(most_tokens, capacity)
    needed = start_blocks(tokens, most_tokens, capacity.growth_tokens, capacity.block_size_tokens)
    if capacity.committed >= capacity.max_running:
        raise NoCapacity(f"{capacity.committed} sequences run or are reserved, max_running is {capacity.max_running}")
    if needed > capacity.blocks_free:
        raise NoCapacity(
            f"{needed} KV blocks are needed, {max(0, capacity.blocks_free)} of {capacity.blocks_total} are free"
        )
    return needed


def victim(needy: int, holders: Sequence[int]) -> int | None:
    """Whose blocks go, so that `needy` can grow: the newest of `holders` (keys), if it is newer
    than `needy`.
    """
    newest = max(holders, default=needy)
    return newest if newest > needy else None
