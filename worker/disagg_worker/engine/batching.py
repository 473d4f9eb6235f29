"""Sequences to tensors: the input of one prefill or decode step."""

from __future__ import annotations

from collections.abc import Sequence as Many

import torch

from disagg_worker.backend.api import Batch, Chunk
from disagg_worker.engine.block_pool import blocks_for
from disagg_worker.engine.sequence import Sequence


def prefill_batch(work: Many[tuple[Sequence, int]], block_size: int) -> Batch:
    """One chunk of n tokens of each sequence; logits are wanted where a chunk ends its sequence."""
    ids: list[int] = []
    chunks, positions, slots, last = [], [], [], []
    for sequence, n in work:
        first, start = sequence.computed, len(ids)
        ids += sequence.tokens[first : first + n]
        at = torch.arange(first, first + n)
        table = torch.tensor(sequence.blocks[: blocks_for(first + n, block_size)])
        chunks.append(Chunk(start, start + n, first, table))
        positions.append(at)
        slots.append(table[at // block_size] * block_size + at % block_size)
        if first + n == len(sequence.tokens):
            last.append(start + n - 1)
    return Batch(torch.tensor(ids), torch.cat(positions), torch.cat(slots), torch.tensor(last, dtype=torch.long), tuple(chunks))


def decode_batch(running: Many[Sequence], block_size: int) -> Batch:
    """The last token of each sequence, whose KV is not in the cache yet."""
    widest = max(blocks_for(s.computed + 1, block_size) for s in running)
    rows, slots = [], []
    for s in running:
        own = s.blocks[: blocks_for(s.computed + 1, block_size)]
        # Shorter tables are filled up with the sequence's own first block, which the length hides.
        rows.append(own + own[:1] * (widest - len(own)))
        slots.append(own[s.computed // block_size] * block_size + s.computed % block_size)
    positions = torch.tensor([s.computed for s in running])
    return Batch(
        torch.tensor([s.tokens[-1] for s in running]),
        positions,
        torch.tensor(slots),
        torch.arange(len(running)),
        tables=torch.tensor(rows),
        lengths=positions + 1,
    )
