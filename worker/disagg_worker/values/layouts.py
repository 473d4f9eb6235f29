"""PURE: The shape of the KV cache and the identity of the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The shape of the cache; equal on both ends of a transfer (see `compat`)."""

    layers: int
    kv_heads: int
    head_dim: int
    block_size_tokens: int
    dtype: str
    itemsize_bytes: int

    @property
    def layer_block_bytes(self) -> int:
        return 2 * self.kv_heads * self.block_size_tokens * self.head_dim * self.itemsize_bytes

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.itemsize_bytes


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model, as the protocol's `info` reports it. `digest` covers config and weights."""

    name: str
    digest: str
    architecture: str
    vocab_size: int
    max_model_len: int
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None
