"""The forward pass of a Llama-family decoder over a batch of flattened tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional

from disagg_worker.attention import paged
from disagg_worker.model.config import ModelConfig, RopeScaling


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one sequence to prefill: rows `start:stop` of the batch, at positions from `first` on.

    `table` [blocks] holds everything up to the chunk's end; a chunk that starts its sequence needs none.
    """

    start: int
    stop: int
    first: int
    table: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Flattened input. token_ids, positions, blocks, offsets: [tokens]; `last` [rows whose logits are wanted].

    Either `chunks` (prefill) or `tables` [sequences, blocks] and `mask` [sequences, 1, 1, keys] (decode, one row a sequence) is set.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    blocks: torch.Tensor
    offsets: torch.Tensor
    last: torch.Tensor
    chunks: tuple[Chunk, ...] = ()
    tables: torch.Tensor | None = None
    mask: torch.Tensor | None = None


def _scaled(inverse: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1: low frequencies are stretched, high ones kept, those between blended (transformers, modeling_rope_utils)."""
    wavelength = 2 * math.pi / inverse
    low = scaling.original_max_position_embeddings / scaling.low_freq_factor
    high = scaling.original_max_position_embeddings / scaling.high_freq_factor
    smooth = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    out = torch.where(wavelength > low, inverse / scaling.factor, inverse)
    return torch.where((wavelength <= low) & (wavelength >= high), blended, out)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer's weights; q, k, v and gate, up are fused so that each is one matrix product."""

    norm_in: torch.Tensor
    qkv: torch.Tensor
    out: torch.Tensor
    norm_mlp: torch.Tensor
    gate_up: torch.Tensor
    down: torch.Tensor


class LlamaModel:
    """Weights and forward pass. Stateless: the KV cache is the caller's."""

    def __init__(self, config: ModelConfig, tensors: dict[str, torch.Tensor]) -> None:
        self.config = config
        self.embedding = tensors["model.embed_tokens.weight"]
        self.norm = tensors["model.norm.weight"]
        self.head = self.embedding if config.tied_embeddings else tensors["lm_head.weight"]
        self.layers = [self._layer(tensors, f"model.layers.{i}") for i in range(config.layers)]
        inverse = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
        if config.rope_scaling is not None:
            inverse = _scaled(inverse, config.rope_scaling)
        angles = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), inverse)
        angles = torch.cat((angles, angles), dim=-1)
        dtype, device = self.embedding.dtype, self.embedding.device
        self._cos, self._sin = angles.cos().to(device, dtype), angles.sin().to(device, dtype)

    @staticmethod
    def _layer(tensors: dict[str, torch.Tensor], at: str) -> _Layer:
        take = tensors.pop
        return _Layer(
            norm_in=take(f"{at}.input_layernorm.weight"),
            qkv=torch.cat([take(f"{at}.self_attn.{p}_proj.weight") for p in "qkv"]),
            out=take(f"{at}.self_attn.o_proj.weight"),
            norm_mlp=take(f"{at}.post_attention_layernorm.weight"),
            gate_up=torch.cat([take(f"{at}.mlp.{p}_proj.weight") for p in ("gate", "up")]),
            down=take(f"{at}.mlp.down_proj.weight"),
        )

    def _rms(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.config.rms_norm_eps)).to(x.dtype)

    def _rotate(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sin

    def forward(self, batch: Batch, cache: torch.Tensor, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Logits [len(batch.last), vocab] in float32. Writes K and V into `cache` [block, layer, 2, kv_head, token, head_dim]
        and calls `on_layer(i)` as soon as layer i's are final, before its MLP runs."""
        c = self.config
        x = functional.embedding(batch.token_ids, self.embedding)
        tokens = x.shape[0]
        cos, sin = self._cos[batch.positions][:, None], self._sin[batch.positions][:, None]
        sizes = [c.heads * c.head_dim, c.kv_heads * c.head_dim, c.kv_heads * c.head_dim]
        attend = _decode_attention(batch, cache) if batch.tables is not None else _prefill_attention(batch, cache)
        for i, layer in enumerate(self.layers):
            q, k, v = torch.split(functional.linear(self._rms(x, layer.norm_in), layer.qkv), sizes, dim=-1)
            q = self._rotate(q.view(tokens, c.heads, c.head_dim), cos, sin)
            k = self._rotate(k.view(tokens, c.kv_heads, c.head_dim), cos, sin)
            v = v.view(tokens, c.kv_heads, c.head_dim)
            paged.write_kv(cache, i, batch.blocks, batch.offsets, k, v)
            if on_layer is not None:
                on_layer(i)
            x = x + functional.linear(attend(i, q, k, v), layer.out)
            gate, up = functional.linear(self._rms(x, layer.norm_mlp), layer.gate_up).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, layer.down)
        return functional.linear(self._rms(x[batch.last], self.norm), self.head).float()


# (layer, q [tokens, head, head_dim], k and v [tokens, kv_head, head_dim], which are in the cache already) -> [tokens, head * head_dim]
_Attention = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def _decode_attention(batch: Batch, cache: torch.Tensor) -> _Attention:
    if batch.tables is None or batch.mask is None:
        raise ValueError("a decode batch has tables and a mask")
    rows, mask = paged.table_rows(cache, batch.tables), batch.mask

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return paged.decode(q, *paged.gather_kv(cache, layer, rows), mask)

    return attend


def _prefill_attention(batch: Batch, cache: torch.Tensor) -> _Attention:
    rows = [paged.table_rows(cache, c.table[None]) if c.first else None for c in batch.chunks]

    def one(layer: int, chunk: Chunk, table: torch.Tensor | None, qkv: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> torch.Tensor:
        q, k, v = (t[chunk.start : chunk.stop] for t in qkv)
        if table is None:  # the chunk starts its sequence: its keys are at hand
            return paged.prefill(q, k.transpose(0, 1), v.transpose(0, 1))
        keys, values = paged.gather_kv(cache, layer, table)
        length = chunk.first + chunk.stop - chunk.start
        return paged.prefill(q, keys[0, :, :length], values[0, :, :length])

    def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        parts = [one(layer, c, table, (q, k, v)) for c, table in zip(batch.chunks, rows, strict=True)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    return attend
