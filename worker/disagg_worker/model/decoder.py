"""The forward pass of a Llama-family decoder over a batch of flattened tokens.

The backend does the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch.nn import functional

from disagg_worker.backend.interface import Backend, Batch, HeadNorms, Layer, Linear, QkvShape, Rotary
from disagg_worker.model.config import ModelConfig
from disagg_worker.model.rotary import rotary_tables
from disagg_worker.model.weights import Shard, Split, WeightSource


class Parallel(Protocol):
    """The other ranks of a tensor-parallel group."""

    def sum_(self, x: torch.Tensor) -> torch.Tensor:
        """Add up x over all ranks in place and return it; every rank gets the same bits."""

    def gather(self, x: torch.Tensor, widths: list[int]) -> torch.Tensor:
        """Return [rows, sum(widths)] from [rows, widths[rank]] of every rank on rank 0; another
        rank gets its own part back.
        """


class Decoder:
    """The weights and the forward pass.

    It has no state: the KV cache belongs to the caller. `shard` selects the heads that it computes,
    and `parallel` adds up the parts of all ranks.
    """

    def __init__(
        self,
        config: ModelConfig,
        source: WeightSource,
        backend: Backend,
        positions: int | None = None,
        shard: Shard | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        shard = shard or Shard()
        shard.check(config)
        self.config = config
        self.backend = backend
        self.parallel = parallel
        self.shape = QkvShape(config.heads // shard.size, config.kv_heads // shard.size, config.head_dim)
        self._source = source
        self.embedding = source.embedding().to(backend.device)
        self._compute = backend.compute_dtype(self.embedding.dtype)
        self.layers = [self._layer(f"model.layers.{i}", config.windows[i]) for i in range(config.layers)]
        self.norm = self._vector("model.norm.weight")
        self.head = backend.linear(source.head(), None)
        self._vocab_parts = [
            len(range(config.vocab_size)[replace(shard, rank=r).part(config.vocab_size)]) for r in range(shard.size)
        ]
        self.rotary: Rotary = rotary_tables(config, positions or config.max_positions, self._compute, backend.device)
        del self._source

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.backend.device

    @property
    def hidden_size(self) -> int:
        """The width of the residual stream."""
        return self.config.hidden_size

    @property
    def rms_norm_eps(self) -> float:
        """The constant that keeps the norms from dividing by zero."""
        return self.config.rms_norm_eps

    @property
    def is_split(self) -> bool:
        """Whether other ranks compute a part of every layer."""
        return self.parallel is not None

    def _layer(self, at: str, window: int | None) -> Layer:
        norms = None
        if self.config.head_norms:
            q, k = (self._vector(f"{at}.self_attn.{p}_norm.weight") for p in "qk")
            norms = HeadNorms(q, k, self.config.rms_norm_eps)
        return Layer(
            norm_in=self._vector(f"{at}.input_layernorm.weight"),
            qkv=self._linear([f"{at}.self_attn.{p}_proj" for p in "qkv"], "outputs"),
            head_norms=norms,
            out=self._linear([f"{at}.self_attn.o_proj"], "inputs"),
            norm_mlp=self._vector(f"{at}.post_attention_layernorm.weight"),
            gate_up=self._linear([f"{at}.mlp.{p}_proj" for p in ("gate", "up")], "outputs"),
            down=self._linear([f"{at}.mlp.down_proj"], "inputs"),
            window=window,
        )

    def _vector(self, name: str) -> torch.Tensor:
        return self._source.vector(name).to(self.backend.device, self._compute)

    def _linear(self, names: list[str], split: Split) -> Linear:
        return self.backend.linear(self._source.matrix(names, split), self._source.bias(names, split))

    def _sum(self, x: torch.Tensor) -> torch.Tensor:
        return x if self.parallel is None else self.parallel.sum_(x)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [tokens, hidden] of [tokens]."""
        return functional.embedding(token_ids, self.embedding).to(self._compute)

    def forward(self, batch: Batch, cache: torch.Tensor, on_layer: Callable[[int], None] | None = None) -> torch.Tensor:
        """Return the logits [len(batch.last), vocab] in float32 (of a group: on rank 0).

        Writes K and V into `cache` [block, layer, 2, kv_head, token, head_dim] and calls
        `on_layer(i)` as soon as those of layer i are final, before its attention and MLP run.
        """
        backend, eps = self.backend, self.config.rms_norm_eps
        x = self.embed(batch.token_ids)
        normed = backend.rms_norm(x, self.layers[0].norm_in, eps)
        for i, layer in enumerate(self.layers):
            qkv = layer.qkv(normed)
            q, k, v = backend.store_qkv(qkv, self.shape, layer.head_norms, self.rotary, batch, cache, i)
            if on_layer is not None:
                on_layer(i)
            attended = self._sum(layer.out(backend.attend(q, k, v, batch, cache, i, layer.window)))
            normed = backend.add_rms_norm(x, attended, layer.norm_mlp, eps)
            moved = self._sum(layer.down(backend.gated(layer.gate_up(normed))))
            if i + 1 < len(self.layers):
                normed = backend.add_rms_norm(x, moved, self.layers[i + 1].norm_in, eps)
            else:
                # Only the rows whose logits are wanted go on.
                normed = backend.add_rms_norm(x[batch.last], moved[batch.last], self.norm, eps)
        return self.logits(normed)

    def logits(self, normed: torch.Tensor) -> torch.Tensor:
        """Apply the head, which is divided over the ranks, to rows that are normed already."""
        part = self.head(normed).float()
        return part if self.parallel is None else self.parallel.gather(part, self._vocab_parts)
