"""PURE: The checks of a model's config.json.

A value that is not supported is refused by name, never guessed at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from disagg_protocol.errors import ModelError
from disagg_protocol.token_fields import token_ids
from disagg_worker.model.quantization_config import StoredQuantization, parse_quantization

# Fields of related families and the values that leave the computation as it is here.
_ONLY: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "partial_rotary_factor": (1.0,),
    "rope_interleaved": (False,),
    "no_rope_layers": (),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "query_pre_attn_scalar": (),
    "attention_multiplier": (),
    "embedding_multiplier": (1.0,),
    "residual_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "logit_scale": (1.0,),
    "clip_qkv": (),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "n_routed_experts": (0,),
    "kv_lora_rank": (),
    "attention_chunk_size": (),
    "attn_temperature_tuning": (False,),
    "use_mrope": (False,),
    "alibi": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
}
# Fields that do not concern the computation, or only that of training.
_HARMLESS = frozenset({
    "_name_or_path", "_attn_implementation", "attention_dropout", "bos_token_id", "chat_template", "dtype",
    "eos_token_id", "id2label", "initializer_range", "label2id", "layer_norm_eps", "max_window_layers", "model_type",
    "output_attentions", "output_hidden_states", "pad_token_id", "pretraining_tp", "return_dict",
    "transformers_version", "torch_dtype", "unk_token_id", "use_cache",
})  # fmt: skip
_USED = frozenset({
    "architectures", "attention_bias", "head_dim", "hidden_size", "intermediate_size", "layer_types",
    "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "quantization_config", "rms_norm_eps", "rope_parameters", "rope_scaling", "rope_theta", "sliding_window",
    "tie_word_embeddings", "use_sliding_window", "vocab_size",
})  # fmt: skip


def unknown_fields(raw: Mapping[str, Any]) -> list[str]:
    """Return the fields of config.json that have a value and are not known here.

    Whoever loads the model is told about them.
    """
    known = _HARMLESS | _USED | set(_ONLY)
    return sorted(name for name, value in raw.items() if name not in known and value not in (None, False, [], {}))


# The sliding window of the families that can have one, if config.json does not name it
# (transformers' MistralConfig, Qwen2Config, Qwen3Config).
_DEFAULT_WINDOW = 4096


@dataclass(frozen=True, slots=True)
class _Family:
    """The properties that distinguish an architecture."""

    qkv_bias: bool | None = None
    """Whether q, k and v have a bias. None: `attention_bias` decides, and the output projection
    then has one too.
    """
    head_norms: bool = False
    """Whether q and k heads are normed."""
    window: str = "none"
    """The layers that may have a sliding window: `none`, `all` or `chosen`."""


_FAMILIES = {
    "LlamaForCausalLM": _Family(),
    "MistralForCausalLM": _Family(qkv_bias=False, window="all"),
    "Qwen2ForCausalLM": _Family(qkv_bias=True, window="chosen"),
    "Qwen3ForCausalLM": _Family(head_norms=True, window="chosen"),
}


@dataclass(frozen=True, slots=True)
class Llama3Scaling:
    """The frequency scaling of Llama 3.1 (rope_type "llama3"), as transformers'
    modeling_rope_utils defines it.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: float


@dataclass(frozen=True, slots=True)
class LinearScaling:
    """The division of all positions by a factor (rope_type "linear")."""

    factor: float


@dataclass(frozen=True, slots=True)
class YarnScaling:
    """The parameters of YaRN (Peng et al., arXiv 2309.00071; rope_type "yarn")."""

    factor: float
    """The factor by which slow dimensions are stretched."""
    original_max_position_embeddings: float
    """The trained length in tokens."""
    attention_factor: float
    """Multiplies cos and sin."""
    beta_fast: float
    """Dimensions that turn more often than this in the trained length are kept."""
    beta_slow: float
    """Dimensions that turn less often than this in the trained length are stretched."""
    truncate: bool
    """Whether the two bounds are rounded to whole dimensions."""


RopeScaling = Llama3Scaling | LinearScaling | YarnScaling


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The shapes and options of a Llama-family decoder."""

    architecture: str
    """The class name in config.json."""
    vocab_size: int
    """The number of token IDs."""
    hidden_size: int
    """The width of the residual stream."""
    intermediate_size: int
    """The width of the MLP."""
    layers: int
    heads: int
    """Query heads per layer."""
    kv_heads: int
    """KV heads per layer."""
    head_dim: int
    """Elements per head."""
    max_positions: int
    """The longest sequence, in tokens, for which the rotary embedding is good."""
    rms_norm_eps: float
    rope_theta: float
    """The base of the rotary frequencies."""
    rope_scaling: RopeScaling | None
    tied_embeddings: bool
    """Whether the head is the transposed embedding."""
    qkv_bias: bool
    out_bias: bool
    """Whether the output projection of the attention has a bias."""
    mlp_bias: bool
    head_norms: bool
    """Whether q and k heads are normed before the rotation."""
    windows: tuple[int | None, ...]
    """The sliding window of each layer in tokens, or None."""
    quantization: StoredQuantization | None
    dtype: str
    """The dtype of the checkpoint, as torch names it."""
    eos_token_ids: tuple[int, ...]
    """The token IDs that end a sequence."""
    bos_token_id: int | None
    """The token ID that begins a sequence."""


# Far above those of every model, and low enough to compute with before anything is looked for.
_MOST = {"num_hidden_layers": 1 << 12, "max_position_embeddings": 1 << 28}
_MOST_OF_OTHERS = 1 << 24


def _positive(raw: Mapping[str, Any], name: str, default: int | None = None) -> int:
    value = raw.get(name, default)
    if value is None and default is not None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ModelError(f"config.json: {name}: {value!r} is not a positive integer")
    if value > (most := _MOST.get(name, _MOST_OF_OTHERS)):
        raise ModelError(f"config.json: {name}: is over {most}")
    return value


def _number(raw: Mapping[str, Any], name: str, default: float | None = None, at: str = "") -> float:
    value = raw.get(name)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ModelError(f"config.json: {at}{name}: {value!r} is not a positive number")
    return float(value)


def _flag(raw: Mapping[str, Any], name: str) -> bool:
    value = raw.get(name)
    if value is not None and not isinstance(value, bool):
        raise ModelError(f"config.json: {name}: {value!r} is neither true nor false")
    return bool(value)


def _rope(raw: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Return the base and the scaling, from `rope_theta` and `rope_scaling` or from the newer
    `rope_parameters`.
    """
    name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    parameters = raw.get(name) or {}
    if not isinstance(parameters, Mapping):
        raise ModelError(f"config.json: {name}: {parameters!r} is not an object")
    theta = _number({"rope_theta": raw.get("rope_theta"), **parameters}, "rope_theta", 10000.0)
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if parameters.get("partial_rotary_factor", 1.0) != 1.0:
        raise ModelError(
            f"config.json: {name}.partial_rotary_factor: {parameters['partial_rotary_factor']!r} is not supported"
        )
    at = f"{name}."
    # Dynamic scaling changes nothing up to max_position_embeddings, and longer prompts are refused.
    if kind in ("default", "dynamic"):
        return theta, None
    if kind == "linear":
        return theta, LinearScaling(_number(parameters, "factor", at=at))
    if kind == "yarn":
        return theta, _yarn(parameters, raw, at)
    if kind != "llama3":
        raise ModelError(
            f"config.json: {name}.rope_type: {kind!r} is not supported (default, dynamic, linear, llama3, yarn)"
        )
    numbers = {
        field: _number(parameters, field, at=at)
        for field in ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    }
    if numbers["high_freq_factor"] <= numbers["low_freq_factor"]:
        raise ModelError(f"config.json: {name}.high_freq_factor: must be greater than low_freq_factor")
    return theta, Llama3Scaling(**numbers)


def _yarn(parameters: Mapping[str, Any], raw: Mapping[str, Any], at: str) -> YarnScaling:
    factor = _number(parameters, "factor", at=at)
    original = _number(parameters, "original_max_position_embeddings", raw.get("max_position_embeddings"), at=at)

    def stretch(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    inferred = stretch(1.0)
    if parameters.get("mscale") and parameters.get("mscale_all_dim"):
        inferred = stretch(_number(parameters, "mscale", at=at)) / stretch(_number(parameters, "mscale_all_dim", at=at))
    return YarnScaling(
        factor=factor,
        original_max_position_embeddings=original,
        attention_factor=_number(parameters, "attention_factor", inferred, at=at),
        beta_fast=_number(parameters, "beta_fast", 32.0, at=at),
        beta_slow=_number(parameters, "beta_slow", 1.0, at=at),
        truncate=parameters.get("truncate", True) is not False,
    )


def _windows(raw: Mapping[str, Any], family: _Family, layers: int) -> tuple[int | None, ...]:
    """Return the sliding window of each layer."""
    kinds = raw.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise ModelError(f"config.json: layer_types: must name a type for each of the {layers} layers")
    for kind in kinds or ():
        if kind not in ("full_attention", "sliding_attention"):
            raise ModelError(f"config.json: layer_types: {kind!r} is not supported (full_attention, sliding_attention)")
    if family.window != "none":
        raw = {"sliding_window": _DEFAULT_WINDOW, **raw}
    wanted = raw.get("sliding_window") is not None and (family.window == "all" or _flag(raw, "use_sliding_window"))
    if family.window == "none" and (raw.get("sliding_window") is not None or "sliding_attention" in (kinds or ())):
        raise ModelError(
            f"config.json: sliding_window: {raw.get('sliding_window')!r} is not supported for this architecture"
        )
    if not wanted:
        if "sliding_attention" in (kinds or ()):
            raise ModelError("config.json: layer_types: names sliding_attention, but sliding_window is not in use")
        return (None,) * layers
    window = _positive(raw, "sliding_window")
    if kinds is not None:
        return tuple(window if kind == "sliding_attention" else None for kind in kinds)
    first = 0 if family.window == "all" else raw.get("max_window_layers", 28)
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise ModelError(f"config.json: max_window_layers: {first!r} is not a number of layers")
    return tuple(window if i >= first else None for i in range(layers))


def parse_config(raw: Mapping[str, Any], generation: Mapping[str, Any]) -> ModelConfig:
    """Check config.json, and generation_config.json for the end tokens.

    Raises ModelError, which names the field.
    """
    architectures = raw.get("architectures")
    architecture = architectures[0] if isinstance(architectures, list) and architectures else architectures
    family = _FAMILIES.get(architecture) if isinstance(architecture, str) else None
    if family is None:
        raise ModelError(f"config.json: architectures: {architecture!r} is not supported ({', '.join(_FAMILIES)})")
    for name, only in _ONLY.items():
        if raw.get(name) is not None and raw[name] not in only:
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
    layers = _positive(raw, "num_hidden_layers")
    max_positions = _positive(raw, "max_position_embeddings")
    if isinstance(scaling, YarnScaling):
        max_positions = max(max_positions, int(scaling.factor * scaling.original_max_position_embeddings))
    attention_bias = _flag(raw, "attention_bias")
    bos = token_ids(raw, "bos_token_id")
    return ModelConfig(
        architecture=str(architecture),
        vocab_size=_positive(raw, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=_positive(raw, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        max_positions=max_positions,
        rms_norm_eps=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        tied_embeddings=_flag(raw, "tie_word_embeddings"),
        qkv_bias=attention_bias if family.qkv_bias is None else family.qkv_bias,
        out_bias=attention_bias if family.qkv_bias is None else False,
        mlp_bias=_flag(raw, "mlp_bias"),
        head_norms=family.head_norms,
        windows=_windows(raw, family, layers),
        quantization=parse_quantization(raw.get("quantization_config")),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "float32"),
        eos_token_ids=token_ids(generation, "eos_token_id") or token_ids(raw, "eos_token_id"),
        bos_token_id=bos[0] if bos else None,
    )
