"""PURE: a model's config.json, checked. What is not supported is refused by name, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_worker.engine.api import ModelError

_ARCHITECTURES = ("LlamaForCausalLM",)
# Fields whose other values mean another computation.
_ONLY = {
    "attention_bias": False,
    "mlp_bias": False,
    "hidden_act": "silu",
    "quantization_config": None,
    "partial_rotary_factor": 1.0,
    "sliding_window": None,
}


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (rope_type "llama3"), as transformers' modeling_rope_utils defines it."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shapes of a Llama-family decoder. `max_positions` is what the rotary embedding was trained for."""

    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    max_positions: int
    rms_norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    dtype: str
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None


def _positive(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json: {name}: {value!r} is not a positive integer")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float | None = None, at: str = "") -> float:
    value = raw.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ModelError(f"config.json: {at}{name}: {value!r} is not a positive number")
    return float(value)


def _rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_theta`/`rope_scaling` or the newer `rope_parameters`."""
    name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    parameters = raw.get(name) or {}
    if not isinstance(parameters, Mapping):
        raise ModelError(f"config.json: {name}: {parameters!r} is not an object")
    theta = _number({"rope_theta": raw.get("rope_theta"), **parameters}, "rope_theta", 10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(f"config.json: {name}.partial_rotary_factor: {parameters['partial_rotary_factor']!r} is not supported")
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise ModelError(f"config.json: {name}.rope_type: {kind!r} is not supported (default, llama3)")
    numbers = {
        field: _number(parameters, field, at=f"{name}.")
        for field in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    }
    if numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise ModelError(f"config.json: {name}.high_freq_factor: must be greater than low_freq_factor")
    return theta, RopeScaling(**numbers)


def _token_ids(raw: Mapping[str, Any], name: str) -> tuple[int, ...]:
    value = raw.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in ids):
        raise ModelError(f"{name}: {value!r} is neither a token id nor a list of them")
    return tuple(ids)


def parse_config(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """Check config.json (and generation_config.json for the end tokens). Raises ModelError naming the field."""
    architectures = raw.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    if architecture not in _ARCHITECTURES:
        raise ModelError(f"config.json: architectures: {architecture!r} is not supported ({', '.join(_ARCHITECTURES)})")
    for name, only in _ONLY.items():
        if raw.get(name, only) != only:
            raise ModelError(f"config.json: {name}: {raw[name]!r} is not supported")
    heads = _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    hidden = _positive(raw, "hidden_size")
    if heads % kv_heads:
        raise ModelError(f"config.json: num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}")
    head_dim = _positive(raw, "head_dim", max(1, hidden // heads))
    if head_dim % 2:
        raise ModelError(f"config.json: head_dim: {head_dim} is odd, rotary embeddings need pairs")
    theta, scaling = _rope(raw)
    bos = _token_ids(raw, "bos_token_id")
    return ModelConfig(
        architecture=architecture,
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size"),
        layers=_positive(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=_positive(raw, "max_position_embeddings"),
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=_token_ids(generation, "eos_token_id") or _token_ids(raw, "eos_token_id"),
        bos_token_id=bos[0] if bos else None,
    )
