"""PURE: The shape of the KV cache and the identity of the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class KvLayout:
    """The shape of the KV cache; both ends of a transfer must have the same (see `compat`)."""

    layers: int
    kv_heads: int
    """KV heads per layer."""
    head_dim: int
    """Elements per head."""
    block_size_tokens: int
    """Tokens per block."""
    dtype: str
    """The element type, as torch names it."""
    itemsize_bytes: int
    """Bytes per element."""

    @property
    def layer_block_bytes(self) -> int:
        return 2 * self.kv_heads * self.block_size_tokens * self.head_dim * self.itemsize_bytes

    @property
    def bytes_per_token(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_dim * self.itemsize_bytes


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The loaded model, as the protocol's `info` reports it."""

    name: str
    """The name under which clients ask for the model."""
    digest: str
    """A hash of the configuration and the weights."""
    architecture: str
    """The class name in the checkpoint's config.json."""
    vocab_size: int
    """The number of token IDs."""
    max_model_len: int
    """The longest sequence (prompt and output) in tokens."""
    eos_token_ids: tuple[int, ...]
    """The token IDs that end a sequence."""
    bos_token_id: int | None
    """The token ID that begins a sequence, if the model has one."""
