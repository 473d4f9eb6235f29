"""PURE: The admission of sequences to decode, and the choice of the one to preempt when blocks run
out.

A request is admitted with blocks for its tokens and for a part of its growth (most requests end
long before their max_tokens). When a running sequence needs a block and none is free, the newest
sequence gives up its own and is computed again later. The oldest sequence therefore always goes on,
and every request ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from disagg_protocol.errors import InvalidInput, NoCapacity
from disagg_worker.engine.block_pool import blocks_for


@dataclass(frozen=True, slots=True)
class Capacity:
    """The capacity of a decode engine."""

    block_size_tokens: int
    blocks_total: int
    blocks_free: int
    """Blocks that are not promised to any sequence."""
    committed: int
    """Sequences that run, wait to run or have a reservation."""
    max_running: int
    """The most sequences that may run."""
    max_model_len: int
    """The longest sequence in tokens."""
    growth_tokens: int
    """The part of its growth, in tokens, with which a request is admitted."""


def check_length(tokens: int, capacity: Capacity) -> None:
    """Raise InvalidInput if there are no tokens, no room for even one more, or too many for the
    whole pool.
    """
    if tokens < 1:
        raise InvalidInput("tokens: at least one is needed")
    if tokens >= capacity.max_model_len:
        raise InvalidInput(f"tokens: {tokens} and at least one more do not fit max_model_len {capacity.max_model_len}")
    check_blocks(tokens, capacity)


def check_blocks(tokens: int, capacity: Capacity) -> None:
    """Raise InvalidInput if the whole pool could not hold the tokens."""
    needed = blocks_for(tokens, capacity.block_size_tokens)
    if needed > capacity.blocks_total:
        raise InvalidInput(f"tokens: {tokens} in all need {needed} KV blocks, this worker has {capacity.blocks_total}")


def start_blocks(tokens: int, most_tokens: int, growth_tokens: int, block_size_tokens: int) -> int:
    """Return the number of blocks to start with: for `tokens` and up to `growth_tokens` (at least
    one) of those that may follow, but not for more than `most_tokens`.
    """
    return blocks_for(min(max(most_tokens, tokens + 1), tokens + max(1, growth_tokens)), block_size_tokens)


def blocks_to_hold(tokens: int, max_total_tokens: int, capacity: Capacity) -> int:
    """Return the number of blocks that a request starts with.

    Raises InvalidInput if it can never be admitted, or NoCapacity if not now.
    """
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
    """Return the key of the sequence to preempt so that `needy` can grow: the newest of `holders`,
    if it is newer than `needy`.
    """
    newest = max(holders, default=needy)
    return newest if newest > needy else None
