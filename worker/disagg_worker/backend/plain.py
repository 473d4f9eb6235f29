"""The backend in plain torch for any device: the reference for the faster backends, and their
substitute where they cannot run.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from disagg_worker.backend import paged_attention
from disagg_worker.backend.interface import (
    Batch,
    Chunk,
    DecodeProgram,
    DecoderNetwork,
    DenseWeight,
    Fp8Weight,
    GroupQuantizedWeight,
    HeadNorms,
    Linear,
    QkvShape,
    Rotary,
    Weight,
)


class _PlainLinear:
    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        self.out_features, self.in_features = weight.shape
        self.weight_bytes = weight.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight, self._bias)


def dequantized(weight: GroupQuantizedWeight | Fp8Weight) -> torch.Tensor:
    """Return the weight [out, in] in float32."""
    if isinstance(weight, Fp8Weight):
        return weight.weight.float() * weight.scale[:, None]
    out, groups = weight.scale.shape
    values = weight.q.view(out, groups, weight.group_size).float()
    return ((values - weight.zero[..., None]) * weight.scale[..., None]).view(out, -1)


def on_device(weight: Weight, device: torch.device) -> Weight:
    """Return the same weight in the device's memory."""
    if isinstance(weight, DenseWeight):
        return DenseWeight(weight.weight.to(device))
    if isinstance(weight, Fp8Weight):
        return Fp8Weight(weight.weight.to(device), weight.scale.to(device))
    moved = (t.to(device) for t in (weight.q, weight.scale, weight.zero))
    return GroupQuantizedWeight(weight.bits, weight.group_size, *moved)


class _QuantizedLinear:
    """A linear module that dequantises its weight at every call: exact, small in memory, slow."""

    def __init__(self, weight: GroupQuantizedWeight | Fp8Weight, bias: torch.Tensor | None) -> None:
        self._weight, self._bias = weight, bias
        stored = weight.q if isinstance(weight, GroupQuantizedWeight) else weight.weight
        self.out_features, self.in_features = stored.shape
        self.weight_bytes = stored.nbytes + weight.scale.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, dequantized(self._weight).to(x.dtype), self._bias)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin


class PlainBackend:
    """Implements interface.Backend in plain torch."""

    name = "torch"
    fp8_cache = True
    exact = False
    decode_sizes: tuple[int, ...] = ()

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def compute_dtype(self, model: torch.dtype) -> torch.dtype:
        return model

    def linear(self, weight: Weight, bias: torch.Tensor | None) -> Linear:
        bias = None if bias is None else bias.to(self.device)
        weight = on_device(weight, self.device)
        return _PlainLinear(weight.weight, bias) if isinstance(weight, DenseWeight) else _QuantizedLinear(weight, bias)

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        return self.rms_norm(x.add_(delta), weight, eps)

    def store_qkv(
        self,
        qkv: torch.Tensor,
        shape: QkvShape,
        norms: HeadNorms | None,
        rotary: Rotary,
        batch: Batch,
        cache: torch.Tensor,
        layer: int,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        parts = qkv.view(qkv.shape[0], -1, shape.head_dim)
        q, k, v = torch.split(parts, [shape.heads, shape.kv_heads, shape.kv_heads], dim=1)
        if norms is not None:
            q, k = self.rms_norm(q, norms.q, norms.eps), self.rms_norm(k, norms.k, norms.eps)
        cos, sin = rotary.cos[batch.positions][:, None], rotary.sin[batch.positions][:, None]
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        paged_attention.write_kv(cache, layer, batch.slots, k, v)
        return q, k, v

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
        if batch.tables is not None and batch.lengths is not None:
            keys, values = (x.to(q.dtype) for x in paged_attention.gather_kv(cache, layer, batch.tables))
            return paged_attention.decode(
                q, keys, values, paged_attention.decode_mask(batch.lengths, keys.shape[2], window)
            )
        parts = [self._chunk(c, q, k, v, cache, layer, window) for c in batch.chunks]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    @staticmethod
    def _chunk(
        chunk: Chunk,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: torch.Tensor,
        layer: int,
        window: int | None,
    ) -> torch.Tensor:
        rows = slice(chunk.start, chunk.stop)
        if chunk.first == 0:  # The chunk starts its sequence, so k and v are all that it sees.
            return paged_attention.prefill(q[rows], k[rows].transpose(0, 1), v[rows].transpose(0, 1), window)
        keys, values = (x.to(q.dtype) for x in paged_attention.gather_kv(cache, layer, chunk.table[None]))
        length = chunk.first + chunk.stop - chunk.start
        return paged_attention.prefill(q[rows], keys[0, :, :length], values[0, :, :length], window)

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return functional.silu(gate) * up

    def decode_program(self, network: DecoderNetwork, cache: torch.Tensor) -> DecodeProgram | None:
        return None
