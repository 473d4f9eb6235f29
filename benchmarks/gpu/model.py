"""A model with the shape of Llama 3.1 8B and random weights.

The weights are created in the memory of the device; no checkpoint is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from disagg_worker.backend.interface import Batch, Chunk, DenseWeight, Weight
from disagg_worker.model.config import ModelConfig, parse_config
from disagg_worker.model.quantization import QuantizingSource
from disagg_worker.model.weights import Split, WeightSource, module_shapes
from disagg_worker.values.choices import Quantization

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "max_position_embeddings": 16384,
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
    "eos_token_id": 0,
}
SMALL: dict[str, Any] = LLAMA_8B | {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip


def config(small: bool) -> ModelConfig:
    return parse_config(SMALL if small else LLAMA_8B, {})


class RandomWeights:
    """A WeightSource of random weights."""

    def __init__(self, shape: ModelConfig, dtype: torch.dtype, device: torch.device) -> None:
        self._config, self._dtype, self._device = shape, dtype, device
        self._shapes = {name: size for name, size, _ in module_shapes(shape)}
        self._generator = torch.Generator(device).manual_seed(0)

    def _random(self, *shape: int) -> torch.Tensor:
        values: torch.Tensor = torch.randn(*shape, generator=self._generator, device=self._device, dtype=self._dtype)
        return values.mul_(0.5 / shape[-1] ** 0.5)

    def embedding(self) -> torch.Tensor:
        return self._random(self._config.vocab_size, self._config.hidden_size)

    def head(self) -> Weight:
        return DenseWeight(self._random(self._config.vocab_size, self._config.hidden_size))

    def vector(self, name: str) -> torch.Tensor:
        return torch.ones(self._config.hidden_size, device=self._device, dtype=self._dtype)

    def matrix(self, names: Sequence[str], split: Split) -> Weight:
        shapes = [self._shapes[name.split(".", 3)[3]] for name in names]
        return DenseWeight(self._random(sum(rows for rows, _ in shapes), shapes[0][1]))

    def bias(self, names: Sequence[str], split: Split) -> torch.Tensor | None:
        return None


def source(shape: ModelConfig, dtype: torch.dtype, device: torch.device, quantization: Quantization) -> WeightSource:
    made = RandomWeights(shape, dtype, device)
    return made if quantization == "none" else QuantizingSource(made, quantization)


def decode_batch(sequences: int, length: int, block_size: int) -> Batch:
    """Return a batch in which each sequence has its own blocks; it is on the CPU, as in the
    engine.
    """
    width = -(-length // block_size)
    tables = torch.randperm(sequences * width, generator=torch.Generator().manual_seed(1)).view(sequences, width)
    at = torch.full((sequences,), length - 1)
    slots = tables[:, -1] * block_size + at % block_size
    return Batch(torch.arange(sequences) + 1, at, slots, torch.arange(sequences), tables=tables, lengths=at + 1)


def prefill_batch(tokens: int, block_size: int, device: torch.device) -> Batch:
    at = torch.arange(tokens)
    table = torch.randperm(-(-tokens // block_size), generator=torch.Generator().manual_seed(2))
    slots = table[at // block_size] * block_size + at % block_size
    batch = Batch(at % 100 + 1, at, slots, at[-1:], (Chunk(0, tokens, 0, table),))
    moved = {name: getattr(batch, name).to(device) for name in ("token_ids", "positions", "slots", "last")}
    return replace(batch, chunks=(replace(batch.chunks[0], table=table.to(device)),), **moved)
