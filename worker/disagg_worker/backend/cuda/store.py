"""The kernel that splits the fused projection, norms and rotates q and k, and writes k and v into
the paged cache, all in one pass.

A program handles one head of a token.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from disagg_worker.backend.interface import HeadNorms, QkvShape, Rotary
from disagg_worker.backend.paged_attention import FP8_MOST


@triton.jit
def _normed(low, high, weight, at, inside, eps, half: tl.constexpr):
    scale = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / (2 * half) + eps)
    kind = weight.dtype.element_ty
    low = (low * scale).to(kind).to(tl.float32) * tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    high = (high * scale).to(kind).to(tl.float32) * tl.load(weight + half + at, mask=inside, other=0.0).to(tl.float32)
    return low.to(kind).to(tl.float32), high.to(kind).to(tl.float32)


@triton.jit(do_not_specialize=["layer", "eps"])
def _store(
    qkv, q_weight, k_weight, eps, cos, sin, positions, slots, cache, q_out, layer,
    layers: tl.constexpr, heads: tl.constexpr, kv_heads: tl.constexpr, size: tl.constexpr, half: tl.constexpr,
    width: tl.constexpr, norms: tl.constexpr, most: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    dim: tl.constexpr = 2 * half
    at = tl.arange(0, width)
    inside = at < half
    source = qkv + (token * (heads + 2 * kv_heads) + head) * dim
    low = tl.load(source + at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(source + half + at, mask=inside, other=0.0).to(tl.float32)
    if head < heads + kv_heads:
        if norms:
            if head < heads:
                low, high = _normed(low, high, q_weight, at, inside, eps, half)
            else:
                low, high = _normed(low, high, k_weight, at, inside, eps, half)
        place = tl.load(positions + token) * dim
        c_low = tl.load(cos + place + at, mask=inside, other=0.0).to(tl.float32)
        c_high = tl.load(cos + place + half + at, mask=inside, other=0.0).to(tl.float32)
        s_low = tl.load(sin + place + at, mask=inside, other=0.0).to(tl.float32)
        s_high = tl.load(sin + place + half + at, mask=inside, other=0.0).to(tl.float32)
        turned = low * c_low - high * s_low
        high = high * c_high + low * s_high
        low = turned
    if head < heads:
        into = q_out + (token * heads + head) * dim
        tl.store(into + at, low.to(q_out.dtype.element_ty), mask=inside)
        tl.store(into + half + at, high.to(q_out.dtype.element_ty), mask=inside)
    else:
        slot = tl.load(slots + token)
        which = (head - heads) // kv_heads  # 0: k, 1: v
        row = (((slot // size) * layers + layer) * 2 + which) * kv_heads + (head - heads) % kv_heads
        kept = cache + (row * size + slot % size) * dim
        if most > 0:
            low, high = tl.clamp(low, -most, most), tl.clamp(high, -most, most)
        tl.store(kept + at, low.to(cache.dtype.element_ty), mask=inside)
        tl.store(kept + half + at, high.to(cache.dtype.element_ty), mask=inside)


def store_qkv(
    qkv: torch.Tensor,
    shape: QkvShape,
    norms: HeadNorms | None,
    rotary: Rotary,
    positions: torch.Tensor,
    slots: torch.Tensor,
    cache: torch.Tensor,
    layer: int,
) -> torch.Tensor:
    """Write k and v into the cache in its dtype (an 8-bit one saturates) and return q [tokens,
    heads, head_dim].
    """
    tokens, half = qkv.shape[0], shape.head_dim // 2
    q = qkv.new_empty(tokens, shape.heads, shape.head_dim)
    weights = (norms.q, norms.k, norms.eps) if norms else (rotary.cos, rotary.cos, 0.0)
    most = FP8_MOST if cache.dtype == torch.float8_e4m3fn else 0.0
    if tokens:
        _store[(tokens, shape.heads + 2 * shape.kv_heads)](
            qkv.contiguous(), *weights, rotary.cos, rotary.sin, positions, slots, cache, q, layer,
            cache.shape[1], shape.heads, shape.kv_heads, cache.shape[4], half, triton.next_power_of_2(half),
            norms is not None, most, num_warps=1,
        )  # fmt: skip
    return q
