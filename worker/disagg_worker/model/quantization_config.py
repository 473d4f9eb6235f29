"""PURE: The `quantization_config` of a model's config.json.

A format that cannot be read is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_protocol.errors import ModelError

_AT = "config.json: quantization_config"


@dataclass(frozen=True, slots=True)
class StoredQuantization:
    """The format in which a checkpoint stores its linear modules."""

    method: str
    """`gptq`, `awq`, `packed`, `int8` or `fp8`."""
    bits: int
    """Bits per weight."""
    group_size: int
    """Inputs that share a scale; 0: all of a row."""
    zero_offset: int = 0
    """A number that is added to stored zeros."""


def _refuse(field: str, value: object, allowed: str) -> ModelError:
    return ModelError(f"{_AT}.{field}: {value!r} is not supported ({allowed})")


def _group(raw: Mapping[str, Any], at: str = "group_size") -> int:
    value = raw.get("group_size")
    if value in (None, -1):
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or value < 8:
        raise _refuse(at, value, "-1 or a number from 8 on")
    return value


def parse_quantization(raw: object) -> StoredQuantization | None:
    """Return the checked format, or None if there is no `quantization_config`.

    Raises ModelError, which names the field.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise ModelError(f"{_AT}: {raw!r} is not an object")
    method = raw.get("quant_method")
    if method == "gptq":
        if raw.get("bits") not in (4, 8):
            raise _refuse("bits", raw.get("bits"), "4, 8")
        version = raw.get("checkpoint_format", "gptq")
        if version not in ("gptq", "gptq_v2"):
            raise _refuse("checkpoint_format", version, "gptq, gptq_v2")
        return StoredQuantization("gptq", raw["bits"], _group(raw), int(version == "gptq"))
    if method == "awq":
        if raw.get("bits", raw.get("w_bit")) != 4:
            raise _refuse("bits", raw.get("bits", raw.get("w_bit")), "4")
        if str(raw.get("version", "gemm")).lower() != "gemm":
            raise _refuse("version", raw.get("version"), "gemm")
        return StoredQuantization("awq", 4, _group({"group_size": raw.get("group_size", raw.get("q_group_size"))}))
    if method == "compressed-tensors":
        return _compressed(raw)
    raise _refuse("quant_method", method, "awq, compressed-tensors, gptq")


def _compressed(raw: Mapping[str, Any]) -> StoredQuantization:
    groups = raw.get("config_groups")
    if not isinstance(groups, Mapping) or len(groups) != 1:
        raise _refuse("config_groups", groups, "exactly one group")
    sparsity = raw.get("sparsity_config") or {}
    if not isinstance(sparsity, Mapping):
        raise _refuse("sparsity_config", sparsity, "an object")
    if sparsity.get("format", "dense") != "dense":
        raise _refuse("sparsity_config.format", sparsity["format"], "dense")
    if raw.get("kv_cache_scheme") is not None:
        raise _refuse("kv_cache_scheme", raw["kv_cache_scheme"], "none")
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        raise _refuse("config_groups.weights", weights, "an object")
    if weights.get("actorder"):
        raise _refuse("config_groups.weights.actorder", weights["actorder"], "none")
    kind = (raw.get("format"), weights.get("type", "int"), weights.get("num_bits"))
    if weights.get("symmetric", True) is not True:
        raise _refuse("config_groups.weights.symmetric", weights["symmetric"], "true")
    if weights.get("strategy") not in ("channel", "group", "tensor"):
        raise _refuse("config_groups.weights.strategy", weights.get("strategy"), "channel, group, tensor")
    size = _group(weights, "config_groups.weights.group_size") if weights["strategy"] == "group" else 0
    if kind in (("pack-quantized", "int", 4), ("pack-quantized", "int", 8)):
        return StoredQuantization("packed", weights["num_bits"], size)
    if kind in (("int-quantized", "int", 8), ("naive-quantized", "int", 8)):
        return StoredQuantization("int8", 8, size)
    if kind in (("float-quantized", "float", 8), ("naive-quantized", "float", 8)):
        return StoredQuantization("fp8", 8, size)
    raise _refuse("format", raw.get("format"), "pack-quantized, int-quantized, naive-quantized, float-quantized")
