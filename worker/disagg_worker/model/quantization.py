"""Weight-only quantisation, done here while loading or read from a checkpoint that stores it.

Embedding, head and norms stay as they are.

The stored formats are GPTQ (AutoGPTQ's QuantLinear), AWQ (AutoAWQ's WQLinear_GEMM) and
compressed-tensors (vLLM project), as their makers publish them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from disagg_protocol.errors import ModelError
from disagg_worker.backend.interface import DenseWeight, Fp8Weight, GroupQuantizedWeight, Weight
from disagg_worker.model.checkpoint import Checkpoint
from disagg_worker.model.config import ModelConfig
from disagg_worker.model.quantization_config import StoredQuantization
from disagg_worker.model.weights import (
    FloatWeights,
    Shard,
    Split,
    WeightSource,
    expected_shapes,
    is_computed,
    module_shapes,
    read_bias,
    read_head,
)
from disagg_worker.values.choices import Quantization

_GROUPS = (128, 64, 32)
# The factors by which the range of a group may be narrowed; the one with the least squared error is
# used.
_CLIPS = (1.0, 0.96, 0.92, 0.88, 0.84)
_FP8_MOST = 448.0
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def quantize(weight: torch.Tensor, bits: int, group_size: int) -> GroupQuantizedWeight:
    """Round a weight [out, in] to the nearest of 2^bits values between the least and the greatest
    of each group.

    `group_size` must divide the number of inputs.
    """
    out, inputs = weight.shape
    values = weight.float().view(out, inputs // group_size, group_size)
    low, high = values.amin(-1).clamp(max=0), values.amax(-1).clamp(min=0)
    best_error = torch.full_like(low, torch.inf)
    best_scale, best_zero = torch.ones_like(low), torch.zeros_like(low)
    most = 2**bits - 1
    for clip in _CLIPS if bits == 4 else _CLIPS[:1]:
        scale = ((high - low) * clip / most).clamp(min=1e-10)
        zero = (-low * clip / scale).round()
        rounded = (values / scale[..., None] + zero[..., None]).round().clamp(0, most)
        error = ((rounded - zero[..., None]) * scale[..., None] - values).square().sum(-1)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
    q = (values / best_scale[..., None] + best_zero[..., None]).round().clamp(0, most).to(torch.uint8)
    return GroupQuantizedWeight(bits, group_size, q.view(out, inputs), best_scale, best_zero)


def to_fp8(weight: torch.Tensor) -> Fp8Weight:
    """Return the weight in float8_e4m3fn, with a scale for each row that maps its greatest value to
    the greatest one of the type.
    """
    scale = (weight.float().abs().amax(1) / _FP8_MOST).clamp(min=1e-12)
    return Fp8Weight((weight.float() / scale[:, None]).to(torch.float8_e4m3fn), scale)


class QuantizingSource:
    """Implements WeightSource by quantising the matrices of another source as they are taken."""

    def __init__(self, source: WeightSource, quantization: Quantization) -> None:
        self._source, self._quantization = source, quantization
        self.embedding, self.head = source.embedding, source.head
        self.vector, self.bias = source.vector, source.bias

    def matrix(self, names: Sequence[str], split: Split) -> Weight:
        weight = self._source.matrix(names, split)
        if not isinstance(weight, DenseWeight) or self._quantization == "none":
            return weight
        if self._quantization == "fp8":
            return to_fp8(weight.weight)
        inputs = weight.weight.shape[1]
        group_size = next((g for g in _GROUPS if inputs % g == 0), inputs)
        return quantize(weight.weight, 8 if self._quantization == "int8" else 4, group_size)


class StoredWeights:
    """Implements WeightSource over a quantised checkpoint.

    A module that is stored as plain floats stays so.
    """

    _SUFFIXES = {
        "gptq": ("qweight", "qzeros", "scales", "g_idx"),
        "awq": ("qweight", "qzeros", "scales"),
        "packed": ("weight_packed", "weight_scale", "weight_shape"),
        "int8": ("weight", "weight_scale"),
        "fp8": ("weight", "weight_scale"),
    }
    _OPTIONAL = frozenset({"g_idx", "weight_zero_point", "input_scale"})

    def __init__(
        self, checkpoint: Checkpoint, config: ModelConfig, stored: StoredQuantization, dtype: torch.dtype, shard: Shard
    ) -> None:
        self._checkpoint, self._config, self._stored, self._dtype, self._shard = (
            checkpoint,
            config,
            stored,
            dtype,
            shard,
        )
        self._shapes = {
            f"model.layers.{i}.{m}": shape for i in range(config.layers) for m, shape, _ in module_shapes(config)
        }
        self._check_names()

    def _quantized(self, module: str) -> bool:
        own = (s for s in self._SUFFIXES[self._stored.method] if s != "weight")
        return any(f"{module}.{suffix}" in self._checkpoint for suffix in own)

    def _check_names(self) -> None:
        suffixes = self._SUFFIXES[self._stored.method]
        expected, allowed = set(), set()
        for name, _ in expected_shapes(self._config):
            module, _, kind = name.rpartition(".")
            if kind == "weight" and module in self._shapes and self._quantized(module):
                expected |= {f"{module}.{s}" for s in suffixes if s not in self._OPTIONAL}
                allowed |= {f"{module}.{s}" for s in (*suffixes, *self._OPTIONAL)}
                # Some packers write a bias of zeros for modules that have none.
                allowed.add(f"{module}.bias")
            else:
                expected.add(name)
        folder = self._checkpoint.folder.name
        for name in self._checkpoint:
            if name not in expected and name not in allowed and not is_computed(name):
                raise ModelError(f"{folder}: tensor {name} is not part of {self._config.architecture}")
        if missing := sorted(expected - set(self._checkpoint)):
            raise ModelError(f"{folder}: tensor {missing[0]} is missing ({len(missing)} in all)")

    def embedding(self) -> torch.Tensor:
        return self.vector("model.embed_tokens.weight")

    def head(self) -> Weight:
        return read_head(self._checkpoint, self._config, self._shard, self._dtype)

    def vector(self, name: str) -> torch.Tensor:
        return self._checkpoint.floats(name).to(self._dtype)

    def bias(self, names: Sequence[str], split: Split) -> torch.Tensor | None:
        return read_bias(self._checkpoint, self._shard, names, split, self._dtype)

    def matrix(self, names: Sequence[str], split: Split) -> Weight:
        if not any(self._quantized(n) for n in names):
            parts = [cut(DenseWeight(self.vector(f"{n}.weight")), split, self._shard, n) for n in names]
        else:
            parts = [cut(self._module(n), split, self._shard, n) for n in names]
        return stacked(parts, names)

    def _module(self, name: str) -> Weight:
        if not self._quantized(name):
            raise ModelError(f"{name} is not quantised, but modules it is fused with are")
        try:
            weight = self._unpacked(name)
        except (RuntimeError, ValueError) as error:  # The shapes do not fit together.
            raise ModelError(f"{name}: {error}") from None
        shape = weight.q.shape if isinstance(weight, GroupQuantizedWeight) else weight.weight.shape
        if tuple(shape) != self._shapes[name]:
            raise ModelError(f"{name} has shape {tuple(shape)}, config.json says {self._shapes[name]}")
        return weight

    def _unpacked(self, name: str) -> GroupQuantizedWeight | Fp8Weight:
        raw, floats = self._checkpoint.raw, self._checkpoint.floats
        s = self._stored
        if s.method in ("gptq", "awq"):
            packed, zeros, scale = raw(f"{name}.qweight"), raw(f"{name}.qzeros"), floats(f"{name}.scales").float().t()
            if s.method == "gptq":
                q, zero = unpack(packed.t(), s.bits), unpack(zeros, s.bits).t() + s.zero_offset
                self._check_order(name, q.shape[1])
            else:
                q, zero = _awq(packed).t(), _awq(zeros).t()
            return _grouped(s.bits, q, scale, zero.float(), name)
        scale = floats(f"{name}.weight_scale").float()
        if s.method == "packed":
            outputs, inputs = self._shapes[name]
            q = unpack(raw(f"{name}.weight_packed"), s.bits)[:, :inputs]
            return _grouped(
                s.bits, q, scale.view(outputs, -1), torch.full((outputs, 1), float(1 << (s.bits - 1))), name
            )
        weight = raw(f"{name}.weight")
        if s.method == "fp8":
            if weight.dtype != torch.float8_e4m3fn:
                raise ModelError(f"{name}.weight is stored as {weight.dtype}, quantization_config says float 8")
            return Fp8Weight(weight, scale.view(-1).expand(weight.shape[0]).contiguous())
        if weight.dtype != torch.int8:
            raise ModelError(f"{name}.weight is stored as {weight.dtype}, quantization_config says int 8")
        columns = scale.view(-1, 1) if scale.numel() == 1 else scale.view(weight.shape[0], -1)
        return _grouped(
            8,
            (weight.int() + 128).to(torch.uint8),
            columns.expand(weight.shape[0], -1),
            torch.full((weight.shape[0], 1), 128.0),
            name,
        )

    def _check_order(self, name: str, inputs: int) -> None:
        """Raise ModelError if GPTQ's activation order scatters the groups over the inputs, which
        the kernels do not support.
        """
        if f"{name}.g_idx" not in self._checkpoint:
            return
        order = self._checkpoint.raw(f"{name}.g_idx")
        size = self._stored.group_size or inputs
        if not torch.equal(order.long(), torch.arange(inputs) // size):
            raise ModelError(
                f"{name}.g_idx: groups out of order (config.json: quantization_config.desc_act) are not supported"
            )


def unpack(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Unpack int32 [rows, n] into uint8 [rows, n * 32 / bits], the lowest bits first."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    return ((packed[..., None] >> shifts) & ((1 << bits) - 1)).to(torch.uint8).flatten(-2)


def _awq(packed: torch.Tensor) -> torch.Tensor:
    """Unpack a matrix of AWQ, which writes the eight columns of a word in another order."""
    nibbles = unpack(packed, 4).view(packed.shape[0], -1, 8)
    out = torch.empty_like(nibbles)
    out[..., list(_AWQ_ORDER)] = nibbles
    return out.flatten(1)


def _grouped(bits: int, q: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, name: str) -> GroupQuantizedWeight:
    groups = scale.shape[1]
    if q.shape[1] % groups:
        raise ModelError(f"{name}: {groups} groups do not divide {q.shape[1]} inputs")
    return GroupQuantizedWeight(
        bits, q.shape[1] // groups, q.contiguous(), scale.contiguous(), zero.expand(scale.shape).contiguous()
    )


def cut(weight: Weight, split: Split, shard: Shard, name: str) -> Weight:
    """Return this rank's part of a weight. Raises ModelError if a group would be cut in two."""
    if shard.size == 1 or split == "none":
        return weight
    if split == "outputs":
        if isinstance(weight, GroupQuantizedWeight):
            rows = shard.part(weight.q.shape[0])
            return GroupQuantizedWeight(
                weight.bits, weight.group_size, weight.q[rows], weight.scale[rows], weight.zero[rows]
            )
        rows = shard.part(weight.weight.shape[0])
        return (
            Fp8Weight(weight.weight[rows], weight.scale[rows])
            if isinstance(weight, Fp8Weight)
            else DenseWeight(weight.weight[rows])
        )
    if isinstance(weight, GroupQuantizedWeight):
        groups = weight.scale.shape[1]
        if groups > 1 and groups % shard.size:
            raise ModelError(f"tensor parallelism {shard.size} does not divide the {groups} groups of {name}")
        part = shard.part(groups) if groups > 1 else slice(None)
        q = weight.q[:, shard.part(weight.q.shape[1])]
        size = weight.group_size if groups > 1 else q.shape[1]
        return GroupQuantizedWeight(
            weight.bits, size, q.contiguous(), weight.scale[:, part].contiguous(), weight.zero[:, part].contiguous()
        )
    columns = weight.weight[:, shard.part(weight.weight.shape[1])].contiguous()
    return Fp8Weight(columns, weight.scale) if isinstance(weight, Fp8Weight) else DenseWeight(columns)


def stacked(parts: Sequence[Weight], names: Sequence[str]) -> Weight:
    """Return the matrices one above the other. Raises ModelError if their groups differ in size."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if isinstance(first, DenseWeight):
        return DenseWeight(torch.cat([p.weight for p in parts if isinstance(p, DenseWeight)]))
    if isinstance(first, Fp8Weight):
        found = [p for p in parts if isinstance(p, Fp8Weight)]
        return Fp8Weight(
            torch.cat([p.weight.view(torch.uint8) for p in found]).view(torch.float8_e4m3fn),
            torch.cat([p.scale for p in found]),
        )
    alike = [p for p in parts if isinstance(p, GroupQuantizedWeight) and p.group_size == first.group_size]
    if len(alike) != len(parts):
        raise ModelError(f"{', '.join(names)}: the groups are not of one size")
    columns = (torch.cat([getattr(p, field) for p in alike]) for field in ("q", "scale", "zero"))
    return GroupQuantizedWeight(first.bits, first.group_size, *columns)


def make_source(
    checkpoint: Checkpoint, config: ModelConfig, dtype: torch.dtype, shard: Shard, quantization: Quantization
) -> WeightSource:
    """Return the source of a checkpoint's weights, quantised as wanted.

    Raises ModelError if the checkpoint is quantised already and `quantization` is not `none`.
    """
    if config.quantization is None:
        source = FloatWeights(checkpoint, config, dtype, shard)
        return source if quantization == "none" else QuantizingSource(source, quantization)
    if quantization != "none":
        raise ModelError(
            f"quantization {quantization!r}: the checkpoint is quantised already ({config.quantization.method})"
        )
    return StoredWeights(checkpoint, config, config.quantization, dtype, shard)
