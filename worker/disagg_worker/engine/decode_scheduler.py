"""PURE: may one more sequence be decoded here? Admission counts growth, so a running sequence never runs out of blocks."""

from __future__ import annotations

from dataclasses import dataclass

from disagg_worker.engine.api import InvalidInput, NoCapacity
from disagg_worker.engine.block_pool import blocks_for


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a decode engine has. `committed`: sequences running or reserved."""

    block_size_tokens: int
    blocks_total: int
    blocks_free: int
    committed: int
    max_running: int
    max_model_len: int


def check_length(tokens: int, capacity: Capacity) -> None:
    """Raises InvalidInput for no tokens at all, or when there is no room for even one more."""
    if tokens < 1:
        raise InvalidInput("tokens: at least one is needed")
    if tokens >= capacity.max_model_len:
        raise InvalidInput(f"tokens: {tokens} and at least one more do not fit max_model_len {capacity.max_model_len}")


def blocks_to_hold(tokens: int, max_total_tokens: int, capacity: Capacity) -> int:
    """Blocks for `tokens` and all the growth the request may need. Raises InvalidInput (never) or NoCapacity (not now)."""
    check_length(tokens, capacity)
    most_tokens = min(max(max_total_tokens, tokens + 1), capacity.max_model_len)
    needed = blocks_for(most_tokens, capacity.block_size_tokens)
    if needed > capacity.blocks_total:
        raise InvalidInput(f"tokens: {most_tokens} in all need {needed} KV blocks, this worker has {capacity.blocks_total}")
    if capacity.committed >= capacity.max_running:
        raise NoCapacity(f"{capacity.committed} sequences run or are reserved, max_running is {capacity.max_running}")
    if needed > capacity.blocks_free:
        raise NoCapacity(f"{needed} KV blocks are needed, {capacity.blocks_free} of {capacity.blocks_total} are free")
    return needed
