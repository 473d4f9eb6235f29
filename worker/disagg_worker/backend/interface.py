"""What a backend offers to the network.

The KV cache is [block, layer, 2, kv_head, token in block, head_dim], contiguous.

Every method leaves its arguments alone unless it says otherwise. Activations have the backend's
`compute_dtype`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of one sequence to prefill: rows `start:stop` of the batch, at positions from `first`
    on.

    `table` [blocks] int64 holds everything up to the chunk's end.
    """

    start: int
    stop: int
    first: int
    table: torch.Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """Flattened input of one step. token_ids, positions, slots: [tokens] int64; a slot is block *
    block size + offset in the block. `last` [rows] int64: the tokens whose logits are wanted.

    Either `chunks` (prefill) or `tables` [sequences, blocks] int64 and `lengths` [sequences] int64
    (decode: one token a sequence, and `lengths` counts it) is set. Where a table is wider than its
    sequence, the rest holds any valid block and is hidden by the length.
    """

    token_ids: torch.Tensor
    positions: torch.Tensor
    slots: torch.Tensor
    last: torch.Tensor
    chunks: tuple[Chunk, ...] = ()
    tables: torch.Tensor | None = None
    lengths: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class DenseWeight:
    """`weight` [out, in] in the model's dtype."""

    weight: torch.Tensor


@dataclass(frozen=True, slots=True)
class GroupQuantizedWeight:
    """Weight-only integers: w[o, i] = (q[o, i] - zero[o, g]) * scale[o, g] with g = i //
    group_size.

    `q` [out, in] uint8, one value a byte (0..15 for 4 bits); scale, zero: [out, in / group_size]
    float32.
    """

    bits: int
    group_size: int
    q: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """w[o, i] = weight[o, i] * scale[o]; `weight` [out, in] float8_e4m3fn, `scale` [out] float32."""

    weight: torch.Tensor
    scale: torch.Tensor


Weight = DenseWeight | GroupQuantizedWeight | Fp8Weight


class Linear(Protocol):
    """y = x W^T + b: [tokens, in] -> [tokens, out]."""

    in_features: int
    out_features: int
    weight_bytes: int

    def __call__(self, x: torch.Tensor) -> torch.Tensor: ...


# A decode batch and the cache -> logits [sequences, vocab] float32: the whole network in one go.
DecodeProgram = Callable[[Batch, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class QkvShape:
    """How a row of the fused projection splits: heads of q, then kv_heads of k, then of v; each of
    head_dim.
    """

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(frozen=True, slots=True)
class HeadNorms:
    """RMS norm over head_dim of every q and k head before the rotation (Qwen3).

    Weights [head_dim].
    """

    q: torch.Tensor
    k: torch.Tensor
    eps: float


@dataclass(frozen=True, slots=True)
class Rotary:
    """cos, sin: [positions, head_dim], both halves filled (the "rotate half" convention of
    transformers).
    """

    cos: torch.Tensor
    sin: torch.Tensor


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


class DecoderNetwork(Protocol):
    """The network as a decode program sees it: its weights, and its forward pass."""

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
        """Whether other ranks compute a part of every layer, so that sums go between the layers."""

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings [tokens, hidden] of [tokens]."""

    def forward(self, batch: Batch, cache: torch.Tensor) -> torch.Tensor:
        """Return the logits [len(batch.last), vocab] in float32."""


class Backend(Protocol):
    """Arithmetic on one device."""

    name: str
    device: torch.device
    fp8_cache: bool
    """Whether the KV cache may be float8_e4m3fn."""
    decode_sizes: tuple[int, ...]
    """Batch sizes that are worth a step before the first request (kernels to compile, graphs to
    record); empty: nothing is.
    """

    def compute_dtype(self, model: torch.dtype) -> torch.dtype:
        """The dtype of activations, norm weights and rotary tables, for a model of that dtype."""

    def linear(self, weight: Weight, bias: torch.Tensor | None) -> Linear:
        """Take a weight over, in whatever layout is fastest here (the caller drops its own
        reference).
        """

    def rms_norm(self, x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """weight * x / sqrt(mean(x^2) + eps) over the last axis, the mean in float32, rounded
        before the weight (as transformers does).
        """

    def add_rms_norm(self, x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
        """Add `delta` to `x` in place, then rms_norm of the sum."""

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
        """Split [tokens, (heads + 2 kv_heads) * head_dim], norm and rotate q and k, write k and v
        into the cache at the batch's slots.

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
        """Causal attention of the batch's tokens over the cache (k and v are in it already) ->
        [tokens, heads * head_dim].

        `window`: a token sees itself and the window - 1 tokens before it; None: all.
        """

    def gated(self, gate_up: torch.Tensor) -> torch.Tensor:
        """silu(gate) * up of [tokens, 2 * n] -> [tokens, n]."""

    def decode_program(self, network: DecoderNetwork, cache: torch.Tensor) -> DecodeProgram | None:
        """A faster way to run decode batches (one compiled call, a CUDA graph); None:
        `network.forward` is the way.
        """


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The batch in the device's memory."""
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
