"""Our decode attention compared with others over the same keys.

The others are SDPA and FlexAttention of torch, on contiguous KV, because they do not support pages
(this is their best case), and FlashInfer if it is installed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from benchmarks.gpu.clock import seconds
from disagg_worker.backend import paged_attention
from disagg_worker.backend.cuda import decode_attention
from disagg_worker.model.config import ModelConfig


def rows(
    c: ModelConfig,
    sequences: int,
    length: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
    processors: int,
) -> Iterator[tuple[str, float | None]]:
    """Yield (name, seconds).

    The seconds are None for a kernel that is missing or not able; the name then contains the
    reason.
    """
    width = -(-length // block_size)
    cache = torch.randn(sequences * width, 1, 2, c.kv_heads, block_size, c.head_dim, device=device).to(dtype)
    tables = torch.randperm(sequences * width).view(sequences, width).to(device)
    lengths = torch.full((sequences,), length, device=device)
    q = torch.randn(sequences, c.heads, c.head_dim, device=device).to(dtype)
    splits = decode_attention.splits_for(sequences, c.kv_heads, processors)
    yield "ours", seconds(lambda: decode_attention.attend(q, cache, 0, tables, lengths, None, splits), device)
    k, v = (x[:, :, :length].contiguous() for x in paged_attention.gather_kv(cache, 0, tables))
    folded = q[:, :, None]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    yield "torch SDPA, not paged", seconds(lambda: sdpa(folded, k, v, enable_gqa=True), device)
    for name, make in (("FlexAttention, not paged", _flex), ("FlashInfer", _flashinfer)):
        try:
            yield name, seconds(make(c, q, k, v, cache, tables, length, block_size), device)
        except Exception as error:
            yield f"{name}: {type(error).__name__}: {str(error)[:60]}", None


def _flex(
    c: ModelConfig,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    length: int,
    size: int,
) -> Callable[[], object]:
    from torch.nn.attention.flex_attention import flex_attention

    if not q.is_cuda:
        raise RuntimeError("needs a GPU")
    compiled = torch.compile(flex_attention)
    return lambda: compiled(q[:, :, None], k, v, enable_gqa=True)


def _flashinfer(
    c: ModelConfig,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cache: torch.Tensor,
    tables: torch.Tensor,
    length: int,
    size: int,
) -> Callable[[], object]:
    import importlib

    flashinfer = importlib.import_module("flashinfer")
    workspace = torch.empty(128 << 20, dtype=torch.uint8, device=q.device)
    wrapper = flashinfer.BatchDecodeWithPagedKVCacheWrapper(workspace, "HND")
    sequences, width = tables.shape
    first = torch.arange(sequences + 1, dtype=torch.int32, device=q.device) * width
    last = torch.full((sequences,), (length - 1) % size + 1, dtype=torch.int32, device=q.device)
    wrapper.plan(
        first,
        tables.flatten().int(),
        last,
        c.heads,
        c.kv_heads,
        c.head_dim,
        size,
        q_data_type=q.dtype,
        kv_data_type=q.dtype,
    )
    pages = cache[:, 0].contiguous()
    return lambda: wrapper.run(q, pages)
