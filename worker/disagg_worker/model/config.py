"""PURE: a model's config.json, checked. What is not supported is refused by name, never guessed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_worker.engine.api import ModelError

_ARCHITECTURES = ("LlamaForCausalLM",)


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3.1's frequency scaling (rope_type "llama3"), as transformers' modeling_rope_utils defines it."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


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


def _rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling, from `rope_theta`/`rope_scaling` or the newer `rope_parameters`."""
    parameters = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    theta = parameters.get("rope_theta") or raw.get("rope_theta") or 10000.0
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return float(theta), None
    if kind != "llama3":
        raise ModelError(f"config.json: rope_scaling.rope_type: {kind!r} is not supported (default, llama3)")
    try:
        return float(theta), RopeScaling(
            float(parameters["factor"]),
            float(parameters["low_freq_factor"]),
            float(parameters["high_freq_factor"]),
            int(parameters["original_max_position_embeddings"]),
        )
    except KeyError as error:
        raise ModelError(f"config.json: rope_scaling.{error.args[0]} is missing") from None


def _token_ids(value: Any) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(int(v) for v in value) if isinstance(value, list) else (int(value),)


def parse_config(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """Check config.json (and generation_config.json for the end tokens). Raises ModelError naming the field."""
    architecture = (raw.get("architectures") or ["?"])[0]
    if architecture not in _ARCHITECTURES:
        raise ModelError(f"config.json: architectures: {architecture!r} is not supported ({', '.join(_ARCHITECTURES)})")
    refused = {"attention_bias": False, "mlp_bias": False, "hidden_act": "silu", "quantization_config": None}
    for name, only in refused.items():
        if raw.get(name, only) != only:
            raise ModelError(f"config.json: {name}: {raw[name]!r} is not supported")
    heads = _positive(raw, "num_attention_heads")
    kv_heads = _positive(raw, "num_key_value_heads", heads)
    hidden = _positive(raw, "hidden_size")
    if heads % kv_heads:
        raise ModelError(f"config.json: num_key_value_heads: {kv_heads} does not divide num_attention_heads {heads}")
    theta, scaling = _rope(raw)
    eos = _token_ids(generation.get("eos_token_id")) or _token_ids(raw.get("eos_token_id"))
    bos = raw.get("bos_token_id")
    return ModelConfig(
        architecture=architecture,
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size"),
        layers=_positive(raw, "num_hidden_layers"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_positive(raw, "head_dim", hidden // heads),
        max_positions=_positive(raw, "max_position_embeddings"),
        rms_norm_eps=float(raw.get("rms_norm_eps", 1e-6)),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=bool(raw.get("tie_word_embeddings", False)),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=eos,
        bos_token_id=None if bos is None else int(bos),
    )
