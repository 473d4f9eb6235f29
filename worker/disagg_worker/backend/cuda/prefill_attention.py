"""Causal attention of prompt chunks over the paged cache (flash attention that fetches the keys
through the block table).

One launch computes all chunks of a batch; a program computes one head for a tile of one chunk's
tokens.
"""

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl

from disagg_worker.backend.interface import Chunk

_TOKENS, _KEYS = 128, 64


@triton.jit(do_not_specialize=["layer", "table_width"])
def _tile(
    q, cache, tiles, tables, out, layer, table_width, scale,
    layers: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, size: tl.constexpr, dim: tl.constexpr,
    width: tl.constexpr, tokens: tl.constexpr, keys: tl.constexpr, window: tl.constexpr,
):  # fmt: skip
    tile, head = tiles + tl.program_id(0) * 4, tl.program_id(1)
    start, count, first, chunk = tl.load(tile), tl.load(tile + 1), tl.load(tile + 2), tl.load(tile + 3)
    kv_head = head // (heads // kv_heads)
    row, column, key = tl.arange(0, tokens), tl.arange(0, width), tl.arange(0, keys)
    inside = (row < count)[:, None] & (column < dim)[None, :]
    place = ((start + row) * heads + head)[:, None] * dim + column[None, :]
    query = tl.load(q + place, mask=inside, other=0.0)
    position = first + row
    oldest = tl.zeros_like(first)
    if window > 0:
        oldest = tl.maximum(first - window + 1, 0) // keys * keys
    end = first + count
    top = tl.full((tokens,), float("-inf"), tl.float32)
    total = tl.zeros((tokens,), tl.float32)
    acc = tl.zeros((tokens, width), tl.float32)
    for begin in range(oldest, end, keys):
        at = begin + key
        there = at < end
        block = tl.load(tables + chunk * table_width + at // size, mask=there, other=0)
        line = ((block * layers + layer) * 2 * kv_heads + kv_head) * size + at % size
        mask = there[:, None] & (column < dim)[None, :]
        k = tl.load(cache + line[:, None] * dim + column[None, :], mask=mask, other=0.0).to(query.dtype)
        score = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
        seen = at[None, :] <= position[:, None]
        if window > 0:
            seen = seen & (at[None, :] > position[:, None] - window)
        score = tl.where(seen, score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        # With a window, a row may have seen no key yet.
        shift = tl.where(new_top == float("-inf"), 0.0, new_top)
        weight = tl.exp2(score - shift[:, None])
        fade = tl.exp2(top - shift)
        total = total * fade + tl.sum(weight, 1)
        v = tl.load(cache + (line + kv_heads * size)[:, None] * dim + column[None, :], mask=mask, other=0.0).to(
            query.dtype
        )
        acc = acc * fade[:, None] + tl.dot(weight.to(query.dtype), v, input_precision="ieee")
        top = new_top
    total = tl.where(total > 0.0, total, 1.0)  # Rows beyond the chunk may have seen no key.
    tl.store(out + place, (acc / total[:, None]).to(out.dtype.element_ty), mask=inside)


def tiles_of(chunks: tuple[Chunk, ...], tokens: int = _TOKENS) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return the tiles [tiles, 4]: first row in the batch, number of rows, position of the first
    row, index of the chunk.

    Tiles with the most keys take longest and come first.
    """
    tiles = [
        (c.start + at, min(tokens, c.stop - c.start - at), c.first + at, i)
        for i, c in enumerate(chunks)
        for at in range(0, c.stop - c.start, tokens)
    ]
    return np.array(sorted(tiles, key=lambda t: -t[2]), dtype=np.int64).reshape(-1, 4)


class Prepared:
    """The tiles and block tables of a batch in the device's memory, which all its layers share."""

    def __init__(self, chunks: tuple[Chunk, ...], device: torch.device) -> None:
        self.tiles = torch.from_numpy(tiles_of(chunks)).to(device)
        tables = torch.nn.utils.rnn.pad_sequence([c.table for c in chunks], batch_first=True)
        self.tables = tables.to(device).contiguous()


def attend(q: torch.Tensor, cache: torch.Tensor, layer: int, prepared: Prepared, window: int | None) -> torch.Tensor:
    """Return the attention [tokens, heads * head_dim] of q [tokens, heads, head_dim].

    k and v are read from the cache.
    """
    rows, heads, dim = q.shape
    layers, kv_heads, size = cache.shape[1], cache.shape[3], cache.shape[4]
    out = q.new_empty(rows, heads * dim)
    if len(prepared.tiles):
        _tile[(len(prepared.tiles), heads)](
            q, cache, prepared.tiles, prepared.tables, out, layer, prepared.tables.shape[1],
            dim**-0.5 * 1.4426950408889634,
            layers, heads, kv_heads, size, dim, max(16, triton.next_power_of_2(dim)), _TOKENS, _KEYS, window or 0,
            num_warps=8, num_stages=2,
        )  # fmt: skip
    return out
