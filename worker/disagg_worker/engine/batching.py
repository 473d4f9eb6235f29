"""Sequences to tensors: the input of one prefill or decode step."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from disagg_worker.engine.block_pool import blocks_for
from disagg_worker.engine.sequence import Sequence
from disagg_worker.model.llama import Batch, Chunk


def _slots(blocks: list[int], positions: torch.Tensor, block_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(blocks)[positions // block_size], positions % block_size


def prefill_batch(work: Many[tuple[Sequence, int]], block_size: int) -> Batch:
    """One chunk of n tokens of each sequence; logits are wanted where a chunk ends its sequence."""
    ids: list[int] = []
    chunks, positions, blocks, offsets, last = [], [], [], [], []
    for sequence, n in work:
        first, start = sequence.computed, len(ids)
        ids += sequence.tokens[first : first + n]
        at = torch.arange(first, first + n)
        block, offset = _slots(sequence.blocks, at, block_size)
        table = torch.tensor(sequence.blocks[: blocks_for(first + n, block_size)])
        chunks.append(Chunk(start, start + n, first, table))
        positions.append(at)
        blocks.append(block)
        offsets.append(offset)
        if first + n == len(sequence.tokens):
            last.append(start + n - 1)
    return Batch(
        torch.tensor(ids),
        torch.cat(positions),
        torch.cat(blocks),
        torch.cat(offsets),
        torch.tensor(last, dtype=torch.long),
        tuple(chunks),
    )


def decode_batch(running: Many[Sequence], block_size: int) -> Batch:
    """The last token of each sequence, whose KV is not in the cache yet."""
    positions = torch.tensor([s.computed for s in running])
    widest = blocks_for(int(positions.max()) + 1, block_size)
    rows = []
    for s in running:
        # Shorter tables are filled up with the sequence's own first block, which the mask hides.
        own = s.blocks[: blocks_for(s.computed + 1, block_size)]
        rows.append(own + own[:1] * (widest - len(own)))
    tables = torch.tensor(rows)
    blocks = tables[torch.arange(len(running)), positions // block_size]
    mask = torch.arange(widest * block_size)[None] <= positions[:, None]
    return Batch(
        torch.tensor([s.tokens[-1] for s in running]),
        positions,
        blocks,
        positions % block_size,
        torch.arange(len(running)),
        tables=tables,
        mask=mask[:, None, None],
    )
