"""The encoding of a step as bytes for the other ranks: int64 only, with nothing to unpickle.

Ten counts are followed by the arrays one after the other; the counts give their lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from disagg_worker.backend.interface import Batch, Chunk
from disagg_worker.execution.executor import Step

_COUNTS = 10


def _ints(values: Sequence[int]) -> npt.NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def encode(number: int, step: Step) -> bytes:
    """Return a step as bytes. `number` tells the steps of a group apart."""
    b = step.batch
    rows, width = (0, 0) if b.tables is None else b.tables.shape
    lists = (step.load, step.clear, step.export)
    counts = (
        number,
        len(b.token_ids),
        len(b.last),
        len(b.chunks),
        rows,
        width,
        *map(len, lists),
        sum(len(c.table) for c in b.chunks),
    )
    arrays = [_ints(counts), *(t.numpy() for t in (b.token_ids, b.positions, b.slots, b.last))]
    if b.tables is not None and b.lengths is not None:
        arrays += [b.tables.numpy().reshape(-1), b.lengths.numpy()]
    arrays += [
        _ints([v for c in b.chunks for v in (c.start, c.stop, c.first, len(c.table))]),
        *(c.table.numpy() for c in b.chunks),
    ]
    arrays += [_ints(values) for values in lists]
    return np.concatenate(arrays).tobytes()


def decode(content: bytes) -> tuple[int, Step]:
    """Decode the result of `encode`. Raises ValueError if the lengths do not fit the counts."""
    if len(content) % 8 or len(content) < 8 * _COUNTS:
        raise ValueError(f"a step of {len(content)} bytes")
    values = np.frombuffer(bytearray(content), dtype=np.int64)
    number, tokens, last, chunks, rows, width, loads, clears, exports, table_blocks = (int(v) for v in values[:_COUNTS])
    sizes = [tokens, tokens, tokens, last, rows * width, rows, 4 * chunks, table_blocks, loads, clears, exports]
    if min(sizes) < 0 or _COUNTS + sum(sizes) != len(values):
        raise ValueError(f"a step of {len(values)} numbers, its counts say {_COUNTS + sum(sizes)}")
    parts = np.split(values, np.cumsum([_COUNTS, *sizes])[:-1])[1:]
    tensors = [torch.from_numpy(p) for p in parts]
    made, at = [], 0
    for start, stop, first, blocks in parts[6].reshape(-1, 4).tolist():
        made.append(Chunk(start, stop, first, tensors[7][at : at + blocks]))
        at += blocks
    ids, positions, slots, wanted, tables, lengths = tensors[:6]
    decoding = rows > 0
    batch = Batch(
        ids,
        positions,
        slots,
        wanted,
        tuple(made),
        tables.view(rows, width) if decoding else None,
        lengths if decoding else None,
    )
    load, clear, export = (tuple(p.tolist()) for p in parts[8:])
    return number, Step(batch, load, clear, export)
