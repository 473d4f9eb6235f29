"""The forward pass of a Llama-family decoder over a batch of flattened tokens. The arithmetic is the backend's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional

from disagg_worker.backend.api import Backend, Batch, DenseWeight, HeadNorms, Linear, QkvShape, Rotary
from disagg_worker.model.config import ModelConfig
from disagg_worker.model.rotary import rotary_tables


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer; q, k, v and gate, up are fused so that each is one matrix product."""

    norm_in: torch.Tensor
    qkv: Linear
    head_norms: HeadNorms | None
    out: Linear
    norm_mlp: torch.Tensor
    gate_up: Linear
    down: Linear
    window: int | None


class Decoder:
    """Weights and forward pass. Stateless: the KV cache is the caller's."""

    def __init__(self, config: ModelConfig, tensors: dict[str, torch.Tensor], backend: Backend) -> None:
        self.config = config
        self.backend = backend
        self.shape = QkvShape(config.heads, config.kv_heads, config.head_dim)
        self.embedding = tensors["model.embed_tokens.weight"]
        self._compute = backend.compute_dtype(self.embedding.dtype)
        self.norm = tensors["model.norm.weight"].to(self._compute)
        self.head = backend.linear(DenseWeight(self.embedding if config.tied_embeddings else tensors["lm_head.weight"]), None)
        self.layers = [self._layer(tensors, f"model.layers.{i}") for i in range(config.layers)]
        self.rotary: Rotary = rotary_tables(config, self._compute, backend.device)

    def _layer(self, tensors: dict[str, torch.Tensor], at: str) -> Layer:
        take = tensors.pop
        fused = self._fused
        return Layer(
            norm_in=take(f"{at}.input_layernorm.weight").to(self._compute),
            qkv=fused(tensors, [f"{at}.self_attn.{p}_proj" for p in "qkv"]),
            head_norms=None,
            out=fused(tensors, [f"{at}.self_attn.o_proj"]),
            norm_mlp=take(f"{at}.post_attention_layernorm.weight").to(self._compute),
            gate_up=fused(tensors, [f"{at}.mlp.{p}_proj" for p in ("gate", "up")]),
            down=fused(tensors, [f"{at}.mlp.down_proj"]),
            window=None,
        )

    def _fused(self, tensors: dict[str, torch.Tensor], names: list[str]) -> Linear:
        weights = [tensors.pop(f"{n}.weight") for n in names]
        return self.backend.linear(DenseWeight(torch.cat(weights) if len(weights) > 1 else weights[0]), _bias(tensors, names))

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """[tokens] -> [tokens, hidden]."""
        return functional.embedding(token_ids, self.embedding).to(self._compute)

    def forward(self, batch: Batch, cache: torch.Tensor, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Logits [len(batch.last), vocab] in float32. Writes K and V into `cache` [block, layer, 2, kv_head, token, head_dim]
        and calls `on_layer(i)` as soon as layer i's are final, before its attention and MLP run."""
        backend, eps = self.backend, self.config.rms_norm_eps
        x = self.embed(batch.token_ids)
        normed = backend.rms_norm(x, self.layers[0].norm_in, eps)
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(normed)
            q, k, v = backend.store_qkv(qkv, self.shape, layer.head_norms, self.rotary, batch, cache, i)
            if on_layer is not None:
                on_layer(i)
            attended = layer.out(backend.attend(q, k, v, batch, cache, i, layer.window))
            normed = backend.add_rms_norm(x, attended, layer.norm_mlp, eps)
            moved = layer.down(backend.gated(layer.gate_up(normed)))
            if i + 1 < len(self.layers):
                normed = backend.add_rms_norm(x, moved, self.layers[i + 1].norm_in, eps)
            else:
                # Only the rows whose logits are wanted go on.
                normed = backend.add_rms_norm(x[batch.last], moved[batch.last], self.norm, eps)
        return self.head(normed).float()


def _bias(tensors: Mapping[str, torch.Tensor], names: list[str]) -> torch.Tensor | None:
    found = [tensors[f"{n}.bias"] for n in names if f"{n}.bias" in tensors]
    return torch.cat(found) if found else None
