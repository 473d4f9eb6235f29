"""Attention of one new token per sequence over the paged cache, split over the keys (flash
decoding).

A program reads a part of one KV head's keys once, for all query heads of that head together. K and
V therefore cross the memory bus once, and the kernel takes as long as reading the cache. A second,
small kernel combines the softmaxes of the parts. The grid depends on the size of the batch and not
on lengths, so a CUDA graph can hold it; each program finds its part from the length in device
memory.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

_MOST_SPLITS = 32
_KEYS = 64


@triton.jit(do_not_specialize=["layer", "table_width"])
def _part(
    q, cache, tables, lengths, sums, tops, layer, table_width, scale,
    layers: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, size: tl.constexpr, dim: tl.constexpr,
    width: tl.constexpr, rows: tl.constexpr, keys: tl.constexpr, splits: tl.constexpr, window: tl.constexpr,
):  # fmt: skip
    sequence, kv_head, split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    group: tl.constexpr = heads // kv_heads
    length = tl.load(lengths + sequence)
    oldest = tl.zeros_like(length)
    if window > 0:
        oldest = tl.maximum(length - window, 0)
    # Every split gets whole tiles, so that tiles start at multiples of `keys` from the oldest key.
    share = tl.cdiv(tl.cdiv(length - oldest, keys), splits) * keys
    first = oldest + split * share
    last = tl.minimum(first + share, length)
    row, column, key = tl.arange(0, rows), tl.arange(0, width), tl.arange(0, keys)
    head = kv_head * group + row
    q_mask = (row < group)[:, None] & (column < dim)[None, :]
    query = tl.load(q + (sequence * heads + head[:, None]) * dim + column[None, :], mask=q_mask, other=0.0)
    top = tl.full((rows,), float("-inf"), tl.float32)
    total = tl.zeros((rows,), tl.float32)
    out = tl.zeros((rows, width), tl.float32)
    for start in range(first, last, keys):
        at = start + key
        inside = at < last
        block = tl.load(tables + sequence * table_width + at // size, mask=inside, other=0)
        line = ((block * layers + layer) * 2 * kv_heads + kv_head) * size + at % size
        mask = inside[:, None] & (column < dim)[None, :]
        k = tl.load(cache + line[:, None] * dim + column[None, :], mask=mask, other=0.0).to(query.dtype)
        v = tl.load(cache + (line + kv_heads * size)[:, None] * dim + column[None, :], mask=mask, other=0.0).to(
            query.dtype
        )
        score = tl.dot(query, tl.trans(k), input_precision="ieee") * scale
        score = tl.where(inside[None, :], score, float("-inf"))
        new_top = tl.maximum(top, tl.max(score, 1))
        weight = tl.exp2(score - new_top[:, None])
        fade = tl.exp2(top - new_top)
        total = total * fade + tl.sum(weight, 1)
        out = out * fade[:, None] + tl.dot(weight.to(query.dtype), v, input_precision="ieee")
        top = new_top
    place = (sequence * heads + head) * splits + split
    tl.store(sums + place[:, None] * (width + 1) + column[None, :], out, mask=(row < group)[:, None])
    tl.store(sums + place * (width + 1) + width, total, mask=row < group)
    tl.store(tops + place, top, mask=row < group)


@triton.jit
def _together(sums, tops, out, dim: tl.constexpr, width: tl.constexpr, splits: tl.constexpr, padded: tl.constexpr):
    place = tl.program_id(0).to(tl.int64)
    split, column = tl.arange(0, padded), tl.arange(0, width)
    there = split < splits
    part_tops = tl.load(tops + place * splits + split, mask=there, other=float("-inf"))
    weight = tl.exp2(part_tops - tl.max(part_tops, 0))  # A part without keys has -inf: weight 0.
    line = (place * splits + split) * (width + 1)
    total = tl.sum(weight * tl.load(sums + line + width, mask=there, other=0.0), 0)
    values = tl.load(sums + line[:, None] + column[None, :], mask=there[:, None], other=0.0)
    result = tl.sum(values * weight[:, None], 0) / total
    tl.store(out + place * dim + column, result.to(out.dtype.element_ty), mask=column < dim)


def splits_for(sequences: int, kv_heads: int, processors: int) -> int:
    """Return the number of parts, a power of two, that gives enough programs to fill the processors
    twice.
    """
    wanted = triton.cdiv(2 * processors, sequences * kv_heads)
    return int(min(_MOST_SPLITS, triton.next_power_of_2(wanted)))


def attend(
    q: torch.Tensor,
    cache: torch.Tensor,
    layer: int,
    tables: torch.Tensor,
    lengths: torch.Tensor,
    window: int | None,
    splits: int,
) -> torch.Tensor:
    """Return the attention [sequences, heads * head_dim] of q [sequences, heads, head_dim] over the
    first `lengths` keys of each sequence, the last of which is the new token's own.
    """
    sequences, heads, dim = q.shape
    layers, kv_heads, size = cache.shape[1], cache.shape[3], cache.shape[4]
    width = max(16, triton.next_power_of_2(dim))
    out = q.new_empty(sequences, heads * dim)
    sums = torch.empty(sequences * heads * splits, width + 1, dtype=torch.float32, device=q.device)
    tops = torch.empty(sequences * heads * splits, dtype=torch.float32, device=q.device)
    rows = max(16, triton.next_power_of_2(heads // kv_heads))
    _part[(sequences, kv_heads, splits)](
        q, cache, tables, lengths, sums, tops, layer, tables.stride(0), dim**-0.5 * 1.4426950408889634,
        layers, heads, kv_heads, size, dim, width, rows, _KEYS, splits, window or 0, num_warps=4, num_stages=3,
    )  # fmt: skip
    _together[(sequences * heads,)](sums, tops, out, dim, width, splits, max(2, splits), num_warps=1)
    return out
