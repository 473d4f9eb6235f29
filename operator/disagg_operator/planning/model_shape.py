"""PURE: from a model's config.json to what it weighs, computes and stores."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


class PlanError(ValueError):
    """An input is wrong or missing; the message names it."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder. `weight_bits`, `kv_bits`: how weights and KV cache are stored. `context_tokens`: the most that a
    request may have; None: not known."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool
    weight_bits: int = 16
    kv_bits: int = 16
    context_tokens: int | None = None

    @property
    def matrix_parameters(self) -> int:
        """Parameters that each token is multiplied with: attention, MLP and the output head."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocab

    @property
    def weight_bytes(self) -> float:
        """All weights; embeddings and norms stay at 16 bits."""
        embedding = 0 if self.tied else self.hidden * self.vocab
        return self.matrix_parameters * self.weight_bits / 8 + 2 * embedding

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values of all layers: 2 * layers * kv_heads * head_dim * bytes."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.kv_bits / 8

    @property
    def token_flops(self) -> float:
        """Of one token through the matrices: a multiplication and an addition for each parameter."""
        return 2 * self.matrix_parameters

    @property
    def pair_flops(self) -> float:
        """Of one token attending to one earlier token, all layers: q.k and p.v."""
        return 4 * self.layers * self.heads * self.head_dim


def _shape(
    name: str,
    layers: int,
    hidden: int,
    intermediate: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    vocab: int,
    context_tokens: int | None = None,
) -> ModelShape:
    return ModelShape(name, layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied=False, context_tokens=context_tokens)


# Shapes as in the published config.json of each model, huggingface.co/ORG/NAME: meta-llama/Llama-3.1-8B and -70B, Llama-3.3-70B and
# Llama-2-70b-hf, mistralai/Mistral-7B-v0.3, Qwen/Qwen2.5-7B, -32B and -72B, Qwen/Qwen3-8B and -32B. Embeddings are not tied in any.
# The context is left out where variants differ in it.
KNOWN = {
    shape.name: shape
    for shape in (
        _shape("llama-3.1-8b", 32, 4096, 14336, 32, 8, 128, 128256, 131072),
        _shape("llama-3.1-70b", 80, 8192, 28672, 64, 8, 128, 128256, 131072),
        _shape("llama-2-70b", 80, 8192, 28672, 64, 8, 128, 32000, 4096),
        _shape("mistral-7b", 32, 4096, 14336, 32, 8, 128, 32768, 32768),
        _shape("qwen2.5-7b", 28, 3584, 18944, 28, 4, 128, 152064),
        _shape("qwen2.5-32b", 64, 5120, 27648, 40, 8, 128, 152064),
        _shape("qwen2.5-72b", 80, 8192, 29568, 64, 8, 128, 152064),
        _shape("qwen3-8b", 36, 4096, 12288, 32, 8, 128, 151936),
        _shape("qwen3-32b", 64, 5120, 25600, 64, 8, 128, 151936),
        _shape("llama-3.3-70b", 80, 8192, 28672, 64, 8, 128, 128256, 131072),
    )
}


_SUFFIXES = ("-instruct", "-base", "-chat", "-hf", "-it", "-v0.3")


def named(name: str) -> ModelShape | None:
    """A known shape by a Hugging Face name, whatever organisation and variant: meta-llama/Llama-3.1-70B-Instruct."""
    short = name.rsplit("/", 1)[-1].lower().removeprefix("meta-")
    while (cut := next((s for s in _SUFFIXES if short.endswith(s)), None)) is not None:
        short = short.removesuffix(cut)
    return KNOWN.get(short)


def _integer(raw: Mapping[str, Any], field: str, default: int | None = None) -> int:
    value = raw.get(field)
    value = default if value is None else value
    if value is None:
        raise PlanError(f"config.json: {field}: is missing")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(f"config.json: {field}: {value!r} is not a positive integer")
    return value


# What tells a model that the formulas above do not describe: most of its layers keep no KV cache, or another one.
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "kv_lora_rank")
_STATES = ("hybrid_override_pattern", "mamba_d_state", "mamba_num_heads", "ssm_cfg", "linear_num_key_heads", "layers_block_type")
_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention", "attention"}
_WRITES = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def _check_kind(raw: Mapping[str, Any]) -> None:
    """Raises PlanError for a model that is no dense decoder with attention in each layer."""
    for field in _EXPERTS:
        if raw.get(field):
            raise PlanError(f"config.json: {field}: mixture-of-experts and latent-attention models are not planned yet")
    kinds = raw.get("layer_types")
    other = sorted({str(k) for k in kinds} - _ATTENTION) if isinstance(kinds, list) else []
    if other or (field := next((f for f in _STATES if raw.get(f)), "")):
        what = f"layer_types: {other[0]}" if other else field
        raise PlanError(f"config.json: {what}: models with state-space or linear-attention layers are not planned: their cache is another")
    if raw.get("is_encoder_decoder"):
        raise PlanError("config.json: is_encoder_decoder: models with an encoder are not planned")
    named = raw.get("architectures")
    if isinstance(named, list) and named and not any(str(a).endswith(_WRITES) for a in named):
        raise PlanError(f"config.json: architectures: {named[0]} generates no text")


def from_config(raw: Mapping[str, Any], name: str) -> ModelShape:
    """The shape in a Hugging Face config.json; of a multi-modal one, that of its text part. Raises PlanError naming the field."""
    text = raw.get("text_config")
    if isinstance(text, Mapping) and "hidden_size" not in raw:
        _check_kind(raw)
        # What is said of the whole holds for its part.
        raw = {k: raw[k] for k in ("quantization_config", "torch_dtype", "dtype", "tie_word_embeddings") if k in raw} | {**text}
        raw.pop("architectures", None)
    _check_kind(raw)
    hidden, heads = _integer(raw, "hidden_size"), _integer(raw, "num_attention_heads")
    kv_heads = _integer(raw, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise PlanError(f"config.json: num_key_value_heads: {heads} heads can't share {kv_heads} equally")
    context = raw.get("max_position_embeddings")
    return ModelShape(
        name=name,
        layers=_integer(raw, "num_hidden_layers"),
        hidden=hidden,
        intermediate=_integer(raw, "intermediate_size"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=_integer(raw, "head_dim", max(1, hidden // heads)),
        vocab=_integer(raw, "vocab_size"),
        tied=bool(raw.get("tie_word_embeddings", False)),
        weight_bits=_weight_bits(raw),
        context_tokens=None if context is None else _integer(raw, "max_position_embeddings"),
    )


def _weight_bits(raw: Mapping[str, Any]) -> int:
    quantization = raw.get("quantization_config")
    if quantization is None:
        return 32 if raw.get("torch_dtype", raw.get("dtype")) == "float32" else 16
    if not isinstance(quantization, Mapping):
        raise PlanError("config.json: quantization_config: must be an object")
    if quantization.get("quant_method") in ("fp8", "fbgemm_fp8"):
        return 8
    groups = quantization.get("config_groups")
    if isinstance(groups, Mapping) and groups:  # compressed-tensors
        weights = next(iter(groups.values())).get("weights") or {}
        return _integer(weights, "num_bits", 16)
    return _integer(quantization, "bits", 16)
