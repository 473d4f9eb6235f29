"""The backend in plain torch that computes each token by itself.

torch chooses other kernels, which round differently, for other shapes. Here every call has the
shapes that it has for a single token, whether that is decoded or prefilled, alone or with others,
so that its bits are always the same. It is slow: each token of a prompt costs a decode step.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from disagg_worker.backend import paged_attention
from disagg_worker.backend.interface import Batch, Linear, Weight
from disagg_worker.backend.plain import PlainBackend


def _rows(*tensors: torch.Tensor) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield each row of all tensors as a copy, since kernels may depend on the place in memory."""
    for i in range(len(tensors[0])):
        yield tuple(x[i : i + 1].clone() for x in tensors)


class _RowByRowLinear:
    """Implements interface.Linear with one call of another one for each row."""

    def __init__(self, inner: Linear) -> None:
        self._inner = inner
        self.in_features, self.out_features = inner.in_features, inner.out_features
        self.weight_bytes = inner.weight_bytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if not len(x):
            return self._inner(x)
        return torch.cat([self._inner(row) for (row,) in _rows(x)])


class RowByRowBackend(PlainBackend):
    """Implements interface.Backend."""

    exact = True

    def linear(self, weight: Weight, bias: torch.Tensor | None) -> Linear:
        return _RowByRowLinear(super().linear(weight, bias))

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        if not len(x):
            return x
        return torch.cat([super(RowByRowBackend, self).rms_norm(row, weight, eps) for (row,) in _rows(x)])

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        return torch.cat([super(RowByRowBackend, self).gated(row) for (row,) in _rows(gate_up)])

    def attend(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        batch: Batch,
        cache: torch.Tensor,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        seen = _seen(batch, cache.shape[4])
        return torch.cat(
            [
                _token(row, table, length, cache, layer, window)
                for (row,), (table, length) in zip(_rows(q), seen, strict=True)
            ]
        )


def _seen(batch: Batch, size: int) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield, for each token of the batch, the blocks and the number of the tokens that it sees."""
    if batch.tables is not None and batch.lengths is not None:
        sequences = [(table, range(n, n + 1)) for table, n in zip(batch.tables, batch.lengths.tolist(), strict=True)]
    else:
        sequences = [(c.table, range(c.first + 1, c.first + c.stop - c.start + 1)) for c in batch.chunks]
    for table, lengths in sequences:
        for length in lengths:
            yield table[: -(-length // size)], length


def _token(
    q: torch.Tensor, table: torch.Tensor, length: int, cache: torch.Tensor, layer: int, window: int | None
) -> torch.Tensor:
    first = 0 if window is None else max(0, length - window)
    keys, values = (
        x[:, :, first:length].to(q.dtype).contiguous() for x in paged_attention.gather_kv(cache, layer, table[None])
    )
    every = torch.ones(1, 1, 1, length - first, dtype=torch.bool, device=q.device)
    return paged_attention.decode(q, keys, values, every)
