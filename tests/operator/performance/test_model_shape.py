"""Tests of shapes from a config.json and by name; a wrong config is refused by its field."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from disagg_operator.performance.config_json import from_config
from disagg_operator.performance.model_shape import KNOWN, PlanError, named

LLAMA: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
    "num_hidden_layers": 32, "vocab_size": 128256, "torch_dtype": "bfloat16", "max_position_embeddings": 131072,
    "architectures": ["LlamaForCausalLM"],
}  # fmt: skip


def test_a_config_gives_the_known_shape() -> None:
    assert from_config(LLAMA, "llama-3.1-8b").context_tokens == 131_072
    assert from_config(LLAMA, "llama-3.1-8b") == KNOWN["llama-3.1-8b"]
    assert 15.9e9 < from_config(LLAMA, "x").weight_bytes < 16.2e9


def test_the_bundled_model(pytestconfig: pytest.Config) -> None:
    folder = Path(pytestconfig.rootpath) / "models" / "stdlib-llama"
    shape = from_config(json.loads((folder / "config.json").read_text()), "stdlib-llama")
    assert shape.kv_bytes_per_token == 3072  # 6 layers, 4 KV heads of dimension 32, bf16
    assert shape.tied
    assert shape.weight_bytes == pytest.approx((folder / "model.safetensors").stat().st_size, rel=0.02)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b"), ("meta-llama/Meta-Llama-3.1-8B", "llama-3.1-8b"),
        ("meta-llama/Llama-2-70b-chat-hf", "llama-2-70b"), ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"),
        ("qwen3-8b", "qwen3-8b"),
    ],
)  # fmt: skip
def test_names(name: str, known: str) -> None:
    assert named(name) is KNOWN[known]


def test_an_unknown_name() -> None:
    assert named("acme/llama-9000") is None


@pytest.mark.parametrize(
    ("quantization", "bits"),
    [
        ({"quant_method": "gptq", "bits": 4}, 4), ({"quant_method": "fp8"}, 8), ({"quant_method": "awq", "bits": 4}, 4),
        ({"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": {"num_bits": 8}}}}, 8),
    ],
)  # fmt: skip
def test_quantised_weights(quantization: dict[str, Any], bits: int) -> None:
    shape = from_config(LLAMA | {"quantization_config": quantization}, "x")
    assert shape.weight_bits == bits
    assert shape.weight_bytes < KNOWN["llama-3.1-8b"].weight_bytes


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hidden_size": None}, "hidden_size"), ({"hidden_size": "big"}, "hidden_size"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"), ({"vocab_size": True}, "vocab_size"),
        ({"hidden_size": None}, "hidden_size: is missing"), ({"num_key_value_heads": 7}, "32 heads can't share 7"),
        ({"hybrid_override_pattern": "M-M*"}, "hybrid_override_pattern: models with state-space"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "layer_types: linear_attention"),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM generates no text"),
        ({"is_encoder_decoder": True}, "an encoder"), ({"quantization_config": 4}, "quantization_config"),
        ({"quantization_config": {"bits": "four"}}, "bits"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_refused_by_field(change: dict[str, Any], word: str) -> None:
    with pytest.raises(PlanError, match=word):
        from_config(LLAMA | change, "x")


def test_a_multi_modal_model_is_planned_by_its_text_part() -> None:
    whole = {
        "architectures": ["Gemma3ForConditionalGeneration"],
        "text_config": LLAMA,
        "quantization_config": {"quant_method": "fp8"},
    }
    assert from_config(whole, "x").kv_bytes_per_token == 131_072
    assert from_config(whole, "x").weight_bits == 8
    with pytest.raises(PlanError, match="num_experts_per_tok: is missing"):
        from_config({"text_config": LLAMA | {"num_experts": 8}}, "x")


def test_a_dense_model_with_a_sliding_window_is_planned_as_if_it_were_full() -> None:
    windowed = from_config(
        LLAMA | {"layer_types": ["sliding_attention", "full_attention"] * 16, "sliding_window": 128}, "x"
    )
    assert windowed.kv_bytes_per_token == 131_072
    assert windowed.kv_bytes(10_000) == 10_000 * 131_072


def test_the_share_of_the_experts_that_a_batch_takes_grows_from_one_tokens_to_all() -> None:
    experts = KNOWN["deepseek-v3"].experts
    assert experts is not None
    assert experts.share == 8 / 256
    assert experts.touched(0) == experts.touched(1) == pytest.approx(8)
    assert experts.touched(10_000) == pytest.approx(256)


def test_weights_may_stay_as_the_checkpoint_has_them() -> None:
    shape = KNOWN["deepseek-v3"]
    assert shape.at_bits(None, 8).weight_bytes == shape.weight_bytes
    assert shape.at_bits(None, 8).kv_bytes_per_token == shape.kv_bytes_per_token / 2
    assert shape.at_bits(4, 16).weight_bytes < 0.6 * shape.weight_bytes
