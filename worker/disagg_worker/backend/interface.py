"""The interface between a backend and the network.

The KV cache is [block, layer, 2, kv_head, token in block, head_dim], contiguous.

No method changes its arguments unless it says so. Activations have the backend's `compute_dtype`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one sequence to prefill: rows `start:stop` of the batch."""

    start: int
    """The chunk's first row in the batch."""
    stop: int
    """The row after its last one."""
    first: int
    """The position of its first token in the sequence."""
    table: torch.Tensor
    """[blocks] int64: the blocks of the sequence up to the end of the chunk."""


@dataclass(frozen=True, slots=True)
class Batch:
    """The flattened input of one step.

    A prefill batch has `chunks`. A decode batch has one token per sequence, `tables` and `lengths`.
    """

    token_ids: torch.Tensor
    """[tokens] int64."""
    positions: torch.Tensor
    """[tokens] int64: the position of each token in its sequence."""
    slots: torch.Tensor
    """[tokens] int64: the place of each token's KV, block * block size + offset in the block."""
    last: torch.Tensor
    """[rows] int64: the tokens whose logits are wanted."""
    chunks: tuple[Chunk, ...] = ()
    """The chunks of a prefill batch."""
    tables: torch.Tensor | None = None
    """[sequences, blocks] int64: the block tables of a decode batch. A row that is wider than its
    sequence is filled up with valid block numbers, which its length hides.
    """
    lengths: torch.Tensor | None = None
    """[sequences] int64: the tokens of each sequence of a decode batch, the new one included."""


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """A weight [out, in] in the model's dtype."""

    weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class GroupQuantizedWeight:
    """A weight of integers: w[o, i] = (q[o, i] - zero[o, g]) * scale[o, g], g = i // group_size."""

    bits: int
    """4 or 8."""
    group_size: int
    """Inputs that share a scale and a zero."""
    q: torch.Tensor
    """[out, in] uint8, one value per byte (0..15 for 4 bits)."""
    scale: torch.Tensor
    """[out, in / group_size] float32."""
    zero: torch.Tensor
    """[out, in / group_size] float32."""


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight of 8-bit floats: w[o, i] = weight[o, i] * scale[o].

    `weight` is [out, in] float8_e4m3fn, `scale` [out] float32.
    """

    weight: torch.Tensor
    scale: torch.Tensor


Weight = DenseWeight | GroupQuantizedWeight | Fp8Weight


class Linear(Protocol):
    """A linear module: y = x W^T + b, [tokens, in] -> [tokens, out]."""

    in_features: int
    out_features: int
    weight_bytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


# Runs the whole network at once: a decode batch and the cache -> logits [sequences, vocab] float32.
DecodeProgram = Callable[[Batch, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class QkvShape:
    """The parts of a row of the fused projection: `heads` heads of q, then `kv_heads` of k and as
    many of v, each with `head_dim` elements.
    """

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """The RMS norms over head_dim of every q and k head before the rotation (Qwen3).

    `q` and `k` are their weights [head_dim].
    """

    q: torch.Tensor
    k: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Rotary:
    """The tables of the rotary embedding: `cos` and `sin` [positions, head_dim], both halves filled
    (the "rotate half" convention of transformers).
    """

    cos: torch.Tensor
    sin: torch.Tensor


@dataclass(frozen=True, slots=True)
class Layer:
    """One decoder layer.

    q, k and v are fused into one matrix product, and so are gate and up.
    """

    norm_in: torch.Tensor
    """The weight [hidden] of the norm before the attention."""
    qkv: Linear
    """The projections q, k and v."""
    head_norms: HeadNorms | None
    """The norms of q and k heads, if the layer has them."""
    out: Linear
    """The output projection of the attention."""
    norm_mlp: torch.Tensor
    """The weight [hidden] of the norm before the MLP."""
    gate_up: Linear
    """The projections of the MLP into its inner width."""
    down: Linear
    """The projection of the MLP back."""
    window: int | None
    """The sliding window in tokens; None: the layer has none."""


class DecoderNetwork(Protocol):
    """The network as a decode program sees it: its weights and its forward pass."""

    @property
    def device(self) -> torch.device: ...

    @property
    def layers(self) -> Sequence[Layer]: ...

    @property
    def shape(self) -> QkvShape: ...

    @property
    def norm(self) -> torch.Tensor:
        """The weight of the last norm."""

    @property
    def head(self) -> Linear: ...

    @property
    def rotary(self) -> Rotary: ...

    @property
    def hidden_size(self) -> int: ...

    @property
    def rms_norm_eps(self) -> float: ...

    @property
    def is_split(self) -> bool:
        """Whether other ranks compute a part of every layer, so that partial sums are added up
        between the layers.
        """

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [tokens, hidden] of [tokens]."""

    def forward(self, batch: Batch, cache: torch.Tensor) -> torch.Tensor:
        """Return the logits [len(batch.last), vocab] in float32."""


class Backend(Protocol):
    """The arithmetic on one device."""

    name: str
    device: torch.device
    fp8_cache: bool
    """Whether the KV cache may be float8_e4m3fn."""
    exact: bool
    """Whether the bits of a token depend on its sequence alone: neither on its batch, nor on which
    tokens were decoded and which were prefilled.
    """
    decode_sizes: tuple[int, ...]
    """The batch sizes of decode steps to run before the first request (to compile kernels and to
    record graphs); empty if there is nothing to prepare.
    """

    def compute_dtype(self, model: torch.dtype) -> torch.dtype:
        """Return the dtype of activations, norm weights and rotary tables for a model's dtype."""

    def linear(self, weight: Weight, bias: torch.Tensor | None) -> Linear:
        """Return a linear module that owns the weight, in the layout that is fastest here.

        The caller drops its own reference.
        """

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Return weight * x / sqrt(mean(x^2) + eps) over the last axis.

        The mean is float32, and the quotient is rounded before it is multiplied by the weight (as
        transformers does).
        """

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Add `delta` to `x` in place and return the `rms_norm` of the sum."""

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
        """Split [tokens, (heads + 2 kv_heads) * head_dim], norm and rotate q and k, and write k and
        v into the cache at the batch's slots.

        Returns q [tokens, heads, head_dim] and k, v [tokens, kv_heads, head_dim].
        """

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
        """Return the causal attention [tokens, heads * head_dim] of the batch's tokens over the
        cache, which holds k and v already.

        With a `window`, a token sees itself and the window - 1 tokens before it; else all of them.
        """

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """Return silu(gate) * up: [tokens, 2 * n] -> [tokens, n]."""

    def decode_program(self, network: DecoderNetwork, cache: torch.Tensor) -> DecodeProgram | None:
        """Return a faster way to run decode batches (one compiled call, a CUDA graph), or None if
        they are to be run by `network.forward`.
        """


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return the batch in the device's memory."""
    if device.type == "cpu":
        return batch

    def moved(x: torch.Tensor) -> torch.Tensor:
        return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)

    return Batch(
        moved(batch.token_ids),
        moved(batch.positions),
        moved(batch.slots),
        moved(batch.last),
        tuple(replace(c, table=moved(c.table)) for c in batch.chunks),
        None if batch.tables is None else moved(batch.tables),
        None if batch.lengths is None else moved(batch.lengths),
    )
