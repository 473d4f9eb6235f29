"""The conversion of sequences to the input of a prefill or decode step, as tensors on the CPU."""

from __future__ import annotations

from collections.abc import Sequence as Many

import numpy as np
import torch

from disagg_worker.backend.interface import Batch, Chunk
from disagg_worker.engine.block_pool import blocks_for
from disagg_worker.engine.sequence import Sequence


def prefill_batch(work: Many[tuple[Sequence, int]], block_size: int) -> Batch:
    """Return a batch with a chunk of n tokens of each sequence.

    Logits are wanted for the chunks that end their sequences.
    """
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
    return Batch(
        torch.tensor(ids),
        torch.cat(positions),
        torch.cat(slots),
        torch.tensor(last, dtype=torch.long),
        tuple(chunks),
    )


class DecodeBatches:
    """Builds decode batches. A batch is valid until the next one is built.

    Memory and tensors are kept between steps: after a step, no Python object is in the processor's
    caches any more, and making a tensor takes 50 us or more.
    """

    def __init__(self, block_size: int) -> None:
        self._size = block_size
        self._rows: list[list[int]] = []
        self._lengths: list[int] = []
        self._shape = (0, 0)
        self._resize(0, 0)

    def build(self, running: Many[Sequence]) -> Batch:
        """Return a batch with the last token of each sequence, whose KV is not in the cache yet."""
        size = self._size
        positions = [s.computed for s in running]
        rows = [s.blocks for s in running]
        if self._shape != (shape := (len(rows), max(positions) // size + 1)):
            self._resize(*shape)
        self._update(rows)
        slots = [blocks[at // size] * size + at % size for blocks, at in zip(rows, positions, strict=True)]
        self._columns[:] = [[s.tokens[-1] for s in running], positions, slots, [at + 1 for at in positions]]
        return self._batch

    def _resize(self, rows: int, widest: int) -> None:
        self._shape = (rows, widest)
        self._rows = []
        self._columns = np.zeros((4, rows), dtype=np.int64)
        self._tables = np.zeros((rows, widest), dtype=np.int64)
        ids, positions, slots, lengths = torch.from_numpy(self._columns).unbind(0)
        self._batch = Batch(
            ids, positions, slots, torch.arange(rows), tables=torch.from_numpy(self._tables), lengths=lengths
        )

    def _update(self, rows: list[list[int]]) -> None:
        """Write the tables of the rows that changed.

        A row is recognised by its list, which only ever grows.
        """
        widest = self._shape[1]
        for i, blocks in enumerate(rows):
            if i < len(self._rows) and self._rows[i] is blocks and self._lengths[i] == len(blocks):
                continue
            # A shorter table is filled up with the sequence's own first block, which its length
            # hides.
            self._tables[i] = (blocks + blocks[:1] * (widest - len(blocks)))[:widest]
        self._rows, self._lengths = rows, [len(blocks) for blocks in rows]
