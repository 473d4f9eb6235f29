"""PURE: The reader of the shape of a model from its Hugging Face config.json.

A model that can't be planned is refused, naming the field that shows it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disagg_operator.performance.model_shape import Experts, Latent, ModelShape, PlanError, Window

# Fields of the same meaning, as different model families name them.
_COUNTS = ("n_routed_experts", "num_experts", "num_local_experts")
_PER_TOKEN = ("num_experts_per_tok", "experts_per_token")
_SHARED = ("n_shared_experts", "num_shared_experts")
_SHARED_WIDTHS = ("shared_expert_intermediate_size", "shared_intermediate_size")
# Fields of mixtures of experts in a form that can't be planned.
_FOREIGN = (
    "moe_num_experts",
    "moe_k",
    "ffn_config",
    "moe_layers_enum",
    "zero_expert_num",
    "moe_every_n_layers",
    "moe_layer_start_index",
)
# Fields of sparse attention, which stores something else besides keys and values.
_SPARSE = ("index_topk", "index_n_heads", "nsa_config", "sparse_attention_config")
_LATENT = ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim")
# Fields of state-space and linear-attention layers.
_STATES = (
    "hybrid_override_pattern", "mamba_d_state", "mamba_num_heads", "ssm_cfg", "linear_num_key_heads",
    "layers_block_type", "linear_attn_config",
)  # fmt: skip
_WINDOWS = {"sliding_attention": "sliding_window", "chunked_attention": "attention_chunk_size"}
_ATTENTION = {"full_attention", "attention", *_WINDOWS}
_WRITES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def from_config(raw: Mapping[str, Any], name: str) -> ModelShape:
    """Return the shape that a config.json describes. Raises PlanError, which names the field.

    The shape of a multi-modal model is that of its text part.
    """
    text = raw.get("text_config")
    if isinstance(text, Mapping) and "hidden_size" not in raw:
        _check_kind(raw)
        # These settings of the whole model also hold for its text part.
        raw = {
            k: raw[k] for k in ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings") if k in raw
        } | {**text}
        raw.pop("architectures", None)
    _check_kind(raw)
    hidden, heads, layers = (_integer(raw, f) for f in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    latent = _latent(raw)
    kv_heads = 1 if latent else _integer(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise PlanError(f"config.json: num_key_value_heads: {heads} heads can't share {kv_heads} equally")
    weight_bits, expert_bits = _bits(raw)
    experts = _experts(raw, layers, expert_bits)
    mixed_only = experts is not None and experts.layers == layers
    dense = "intermediate_size_mlp" if experts and "intermediate_size_mlp" in raw else "intermediate_size"
    context = raw.get("max_position_embeddings")
    return ModelShape(
        name=name,
        layers=layers,
        hidden=hidden,
        intermediate=_integer(raw, dense, 1 if mixed_only else None),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=latent.nope + latent.rope if latent else _integer(raw, "head_dim", max(1, hidden // heads)),
        vocab=_integer(raw, "vocab_size"),
        tied=bool(raw.get("tie_word_embeddings", False)),
        weight_bits=weight_bits,
        context_tokens=None if context is None else _integer(raw, "max_position_embeddings"),
        experts=experts,
        latent=latent,
        # The bundled engine also stores tokens outside of a window. So dense models, which it can
        # serve, are planned as if they had no window.
        window=_window(raw, layers) if experts else None,
    )


def _integer(raw: Mapping[str, Any], field: str, default: int | None = None, least: int = 1) -> int:
    value = raw.get(field)
    value = default if value is None else value
    if value is None:
        raise PlanError(f"config.json: {field}: is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise PlanError(
            f"config.json: {field}: {value!r} is not {'a positive integer' if least else 'an integer of 0 or more'}"
        )
    return value


def _one_of(
    raw: Mapping[str, Any], fields: tuple[str, ...], default: int | None = None, least: int = 1
) -> tuple[str, int]:
    """Return the field that is set and its value. Raises PlanError if two fields contradict."""
    given = {f: _integer(raw, f, least=least) for f in fields if raw.get(f) is not None}
    if len(set(given.values())) > 1:
        raise PlanError(f"config.json: {', '.join(given)}: say {' and '.join(map(str, given.values()))}")
    if given:
        return next(iter(given.items()))
    return fields[0], _integer(raw, fields[0], default, least)


def _check_kind(raw: Mapping[str, Any]) -> None:
    """Raise PlanError for a model that is not a decoder with attention in each layer."""
    if field := next((f for f in _FOREIGN if raw.get(f)), ""):
        raise PlanError(
            f"config.json: {field}: mixtures of experts in this form are not planned ({', '.join(_COUNTS)} are)"
        )
    if field := next((f for f in _SPARSE if raw.get(f)), ""):
        raise PlanError(
            f"config.json: {field}: sparse attention is not planned: "
            "it keeps an index beside the cache and reads a part of it"
        )
    kinds = raw.get("layer_types")
    other = sorted({str(k) for k in kinds} - _ATTENTION) if isinstance(kinds, list) else []
    if other or (field := next((f for f in _STATES if raw.get(f)), "")) or _linear(raw):
        what = f"layer_types: {other[0]}" if other else field or "attn_type_list"
        raise PlanError(
            f"config.json: {what}: models with state-space or linear-attention layers are not planned: "
            "their cache is another"
        )
    if raw.get("is_encoder_decoder"):
        raise PlanError("config.json: is_encoder_decoder: models with an encoder are not planned")
    named = raw.get("architectures")
    if isinstance(named, list) and named and not any(str(a).endswith(_WRITES) for a in named):
        raise PlanError(f"config.json: architectures: {named[0]} generates no text")


def _linear(raw: Mapping[str, Any]) -> bool:
    """Return whether a layer has linear attention, which MiniMax marks by a 0 in a list."""
    kinds = raw.get("attn_type_list")
    return isinstance(kinds, list) and 0 in kinds


def _latent(raw: Mapping[str, Any]) -> Latent | None:
    if raw.get("kv_lora_rank") is None:
        if given := next((f for f in _LATENT if raw.get(f)), None):
            raise PlanError(f"config.json: kv_lora_rank: is missing, though {given} is that of latent attention")
        return None
    rank, rope, nope, value = (
        _integer(raw, f) for f in ("kv_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim")
    )
    return Latent(rank, rope, nope, value, _integer(raw, "q_lora_rank", 0, least=0))


# ---- experts ----


def _experts(raw: Mapping[str, Any], layers: int, bits: float | None) -> Experts | None:
    """Return the experts of a model.

    Returns None for a dense model, including one that is written as a mixture of one expert.
    """
    if not any(raw.get(f) for f in _COUNTS):
        return None
    field, count = _one_of(raw, _COUNTS)
    per_token_field, per_token = _one_of(raw, _PER_TOKEN)
    if per_token > count:
        raise PlanError(f"config.json: {per_token_field}: {per_token} of {count} ({field})")
    if count == 1:
        return None
    # Mixtral, gpt-oss and Llama 4 have no separate field for the width of experts.
    own = field == "n_routed_experts" or raw.get("moe_intermediate_size") is not None
    width = _integer(raw, "moe_intermediate_size" if own else "intermediate_size")
    mixed = _mixed_layers(raw, layers)
    if not mixed:
        raise PlanError(f"config.json: {field}: {count}, but no layer has experts")
    return Experts(mixed, count, per_token, width, _shared_width(raw, width), bits)


def _shared_width(raw: Mapping[str, Any], width: int) -> int:
    number_field, number = _one_of(raw, _SHARED, 0, least=0)
    own_field, own = _one_of(raw, _SHARED_WIDTHS, 0, least=0)
    if number and own and number * width != own:
        raise PlanError(f"config.json: {own_field}: {own}, but {number_field} says {number} of {width}")
    llama4 = width if raw.get("interleave_moe_layer_step") else 0
    return own or number * width or llama4


def _mixed_layers(raw: Mapping[str, Any], layers: int) -> int:
    """Return the number of layers that have experts.

    It follows the rules of DeepSeek and GLM (the first k layers are dense, then every n-th or those
    with a 1 in a list have experts), of Qwen (every n-th layer except some) and of Llama 4 (every
    n-th layer, or a list of layers).
    """
    first = _integer(raw, "first_k_dense_replace", 0, least=0)
    if first > layers:
        raise PlanError(f"config.json: first_k_dense_replace: {first} of {layers} layers")
    chosen = set(range(first, layers))
    frequency = raw.get("moe_layer_freq")
    if isinstance(frequency, list):
        if len(frequency) != layers or any(mixed not in (0, 1) for mixed in frequency):
            raise PlanError(f"config.json: moe_layer_freq: must hold a 0 or 1 for each of {layers} layers")
        chosen &= {i for i, mixed in enumerate(frequency) if mixed}
    else:
        chosen &= set(range(0, layers, _integer(raw, "moe_layer_freq", 1)))
    step = _integer(raw, "decoder_sparse_step", 1)
    chosen &= set(range(step - 1, layers, step))
    chosen -= _layers(raw, "mlp_only_layers", layers)
    if raw.get("moe_layers"):
        chosen &= _layers(raw, "moe_layers", layers)
    else:
        step = _integer(raw, "interleave_moe_layer_step", 1)
        chosen &= set(range(step - 1, layers, step))
    return len(chosen)


def _layers(raw: Mapping[str, Any], field: str, layers: int) -> set[int]:
    value = raw.get(field)
    if value is None:
        return set()
    if not isinstance(value, list) or not all(type(i) is int and 0 <= i < layers for i in value):
        raise PlanError(f"config.json: {field}: must be a list of layers, 0 to {layers - 1}")
    return set(value)


# ---- windows ----


def _window(raw: Mapping[str, Any], layers: int) -> Window | None:
    """Return the window of a model and the number of layers that have it, or None without a window.

    The layers are named by `layer_types`; in Llama 4 they are all those with rotary embeddings.
    """
    kinds = raw.get("layer_types")
    if not isinstance(kinds, list):
        if raw.get("attention_chunk_size") is None or "interleave_moe_layer_step" not in raw:
            return None
        rotary = raw.get("no_rope_layers")  # in spite of the name, 1 marks a layer with rotary embeddings
        chunked = sum(map(bool, rotary)) if isinstance(rotary, list) and len(rotary) == layers else layers - layers // 4
        return Window(chunked, _integer(raw, "attention_chunk_size")) if chunked else None
    if len(kinds) != layers:
        raise PlanError(f"config.json: layer_types: has {len(kinds)} of {layers} layers")
    for kind, field in _WINDOWS.items():
        if count := kinds.count(kind):
            return Window(count, _integer(raw, field))
    return None


# ---- bits ----


def _bits(raw: Mapping[str, Any]) -> tuple[int, float | None]:
    """Return the bits of a weight, and those of routed experts if they are stored differently."""
    quantization = raw.get("quantization_config")
    if quantization is None:
        return (32 if raw.get("torch_dtype", raw.get("dtype")) == "float32" else 16), None
    if not isinstance(quantization, Mapping):
        raise PlanError("config.json: quantization_config: must be an object")
    method = quantization.get("quant_method")
    if method in ("fp8", "fbgemm_fp8"):
        return 8, None
    if method == "mxfp4":
        if not any(raw.get(f) for f in _COUNTS):
            raise PlanError("config.json: quantization_config: mxfp4 is planned of experts only")
        return 16, 4.25
    if method == "modelopt":
        return (4 if "4" in str(quantization.get("quant_algo")) else 8), None  # NVFP4, W4A16_AWQ; FP8
    groups = quantization.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        return _integer(quantization, "bits", 16), None
    first = next(iter(groups.values()))  # compressed-tensors
    weights = first.get("weights") or {} if isinstance(first, Mapping) else None
    if not isinstance(weights, Mapping):
        raise PlanError("config.json: quantization_config: config_groups: must hold objects with weights")
    bits, ignored = _integer(weights, "num_bits", 16), quantization.get("ignore")
    if isinstance(ignored, list) and any("self_attn" in str(pattern) for pattern in ignored):
        group = weights.get("group_size")
        return 16, bits + (16 / group if isinstance(group, int) and group > 0 else 0)
    return bits, None
