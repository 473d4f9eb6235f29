"""The limits of the device: bytes from its memory, and products of the model's matrices."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch

from benchmarks.gpu.clock import seconds
from disagg_worker.model.config import ModelConfig


def read_bytes_per_s(device: torch.device, n_bytes: int) -> float:
    """Return the better rate of a copy (read and written) and a sum (read).

    Both use far more bytes than the caches hold.
    """
    source = torch.randn(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source), device)
    read_s = seconds(lambda: torch.sum(source), device)
    return max(2 * source.nbytes / copy_s, source.nbytes / read_s)


def matrices(c: ModelConfig) -> Iterator[tuple[int, int]]:
    """Yield (outputs, inputs) of the four products of a layer."""
    yield (c.heads + 2 * c.kv_heads) * c.head_dim, c.hidden_size
    yield c.hidden_size, c.heads * c.head_dim
    yield 2 * c.intermediate_size, c.hidden_size
    yield c.hidden_size, c.intermediate_size


def matmul_flops_per_s(c: ModelConfig, tokens: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the best rate among the shapes of a layer, on random values."""
    rates = []
    for outputs, inputs in matrices(c):
        x, w = (
            torch.randn(tokens, inputs, device=device).to(dtype),
            torch.randn(outputs, inputs, device=device).to(dtype),
        )
        rates.append(2 * tokens * outputs * inputs / seconds(partial(torch.nn.functional.linear, x, w), device))
    return max(rates)


def prefill_flops(c: ModelConfig, tokens: int) -> float:
    """Return the operations of a prefill.

    They are the matrix products of all layers, causal attention, and the head for one row.
    """
    dense = 2 * tokens * sum(o * i for o, i in matrices(c))
    attention = 4 * c.heads * c.head_dim * tokens * (tokens + 1) / 2
    return c.layers * (dense + attention) + 2 * c.vocab_size * c.hidden_size
