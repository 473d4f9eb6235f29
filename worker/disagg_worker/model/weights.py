"""The interface between the tensors of a checkpoint and the network.

A `WeightSource` returns each matrix as a backend Weight, fused and cut to this rank's part.
`FloatWeights` reads floating-point checkpoints; quantisation has sources of its own, one of which
wraps another source.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from disagg_protocol.errors import ModelError
from disagg_worker.backend.interface import DenseWeight, Weight
from disagg_worker.model.checkpoint import Checkpoint
from disagg_worker.model.config import ModelConfig

# The way in which a matrix [out, in] is divided over the ranks of a tensor-parallel group: by
# outputs, by inputs, or not at all.
Split = Literal["outputs", "inputs", "none"]


@dataclass(frozen=True, slots=True)
class Shard:
    """The part of the heads and of the MLP's width that one rank computes."""

    rank: int = 0
    size: int = 1

    def part(self, n: int) -> slice:
        """Return this rank's share of n rows or columns."""
        return slice(n * self.rank // self.size, n * (self.rank + 1) // self.size)

    def check(self, config: ModelConfig) -> None:
        """Raise ModelError, which names what cannot be divided evenly."""
        for name, n in (("num_key_value_heads", config.kv_heads), ("intermediate_size", config.intermediate_size)):
            if n % self.size:
                raise ModelError(f"tensor parallelism {self.size} does not divide config.json's {name} {n}")


class WeightSource(Protocol):
    """The source of a network's weights. Every method raises ModelError, which names the tensor."""

    def embedding(self) -> torch.Tensor:
        """Return the embedding [vocab, hidden] in the model's dtype."""

    def head(self) -> Weight:
        """Return this rank's rows of the output head [vocab, hidden]."""

    def vector(self, name: str) -> torch.Tensor:
        """Return a whole norm weight in the model's dtype."""

    def matrix(self, names: Sequence[str], split: Split) -> Weight:
        """Return the matrices of these modules one above the other, each one this rank's part."""

    def bias(self, names: Sequence[str], split: Split) -> torch.Tensor | None:
        """Return the biases of these modules one after the other, cut in the same way.

        None means that the model has no bias here or that another rank adds it.
        """


def expected_shapes(c: ModelConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield every tensor of the architecture and its shape."""
    yield "model.embed_tokens.weight", (c.vocab_size, c.hidden_size)
    yield "model.norm.weight", (c.hidden_size,)
    if not c.tied_embeddings:
        yield "lm_head.weight", (c.vocab_size, c.hidden_size)
    for i in range(c.layers):
        at = f"model.layers.{i}"
        yield f"{at}.input_layernorm.weight", (c.hidden_size,)
        yield f"{at}.post_attention_layernorm.weight", (c.hidden_size,)
        if c.head_norms:
            yield f"{at}.self_attn.q_norm.weight", (c.head_dim,)
            yield f"{at}.self_attn.k_norm.weight", (c.head_dim,)
        for name, (outputs, inputs), bias in module_shapes(c):
            yield f"{at}.{name}.weight", (outputs, inputs)
            if bias:
                yield f"{at}.{name}.bias", (outputs,)


def module_shapes(c: ModelConfig) -> Iterator[tuple[str, tuple[int, int], bool]]:
    """Yield the linear modules of a layer: (name, (outputs, inputs), whether it has a bias)."""
    q, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    yield "self_attn.q_proj", (q, c.hidden_size), c.qkv_bias
    yield "self_attn.k_proj", (kv, c.hidden_size), c.qkv_bias
    yield "self_attn.v_proj", (kv, c.hidden_size), c.qkv_bias
    yield "self_attn.o_proj", (c.hidden_size, q), c.out_bias
    yield "mlp.gate_proj", (c.intermediate_size, c.hidden_size), c.mlp_bias
    yield "mlp.up_proj", (c.intermediate_size, c.hidden_size), c.mlp_bias
    yield "mlp.down_proj", (c.hidden_size, c.intermediate_size), c.mlp_bias


def is_computed(name: str) -> bool:
    """Return whether a tensor is a tied head or a buffer, which some checkpoints store although it
    is computed.
    """
    return name == "lm_head.weight" or name.endswith("rotary_emb.inv_freq")


class FloatWeights:
    """Implements WeightSource over a floating-point checkpoint.

    All names and shapes are checked before anything is read.
    """

    def __init__(self, checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, shard: Shard) -> None:
        self._checkpoint, self._config, self._dtype, self._shard = checkpoint, config, dtype, shard
        shapes = dict(expected_shapes(config))
        for name in checkpoint:
            if name not in shapes and not is_computed(name):
                raise ModelError(f"{checkpoint.folder.name}: tensor {name} is not part of {config.architecture}")
        if missing := sorted(set(shapes) - set(checkpoint)):
            raise ModelError(f"{checkpoint.folder.name}: tensor {missing[0]} is missing ({len(missing)} in all)")
        for name, shape in shapes.items():
            checkpoint.check(name, shape)

    def embedding(self) -> torch.Tensor:
        return self.vector("model.embed_tokens.weight")

    def head(self) -> Weight:
        return read_head(self._checkpoint, self._config, self._shard, self._dtype)

    def vector(self, name: str) -> torch.Tensor:
        return self._checkpoint.floats(name).to(self._dtype)

    def matrix(self, names: Sequence[str], split: Split) -> DenseWeight:
        parts = [self._part(f"{name}.weight", split) for name in names]
        return DenseWeight(torch.cat(parts) if len(parts) > 1 else parts[0])

    def _part(self, name: str, split: Split) -> torch.Tensor:
        outputs, inputs = self._checkpoint.shape(name)
        if self._shard.size == 1 or split == "none":
            tensor = self._checkpoint.floats(name)
        elif split == "outputs":
            tensor = self._checkpoint.floats(name, self._shard.part(outputs))
        else:
            tensor = self._checkpoint.floats(name, columns=self._shard.part(inputs))
        return tensor.to(self._dtype)

    def bias(self, names: Sequence[str], split: Split) -> torch.Tensor | None:
        return read_bias(self._checkpoint, self._shard, names, split, self._dtype)


def read_head(checkpoint: Checkpoint, config: ModelConfig, shard: Shard, dtype: torch.dtype) -> DenseWeight:
    """Implement WeightSource.head for any checkpoint."""
    name = "model.embed_tokens.weight" if config.tied_embeddings else "lm_head.weight"
    rows = shard.part(config.vocab_size) if shard.size > 1 else slice(None)
    return DenseWeight(checkpoint.floats(name, rows).to(dtype))


def read_bias(
    checkpoint: Checkpoint, shard: Shard, names: Sequence[str], split: Split, dtype: torch.dtype
) -> torch.Tensor | None:
    """Implement WeightSource.bias for any checkpoint."""
    stored = [f"{name}.bias" for name in names if f"{name}.bias" in checkpoint]
    if not stored or (split == "inputs" and shard.rank):
        return None  # These are partial sums, and only the first rank adds the bias.
    parts = [
        checkpoint.floats(name, shard.part(checkpoint.shape(name)[0]) if split == "outputs" else slice(None))
        for name in stored
    ]
    return torch.cat(parts).to(dtype)
