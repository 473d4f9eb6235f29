"""Tests of the known mixtures of experts against published figures and their config.json."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples

from disagg_operator.performance.config_json import from_config
from disagg_operator.performance.model_shape import KNOWN, PlanError, named

# The total and active parameters in billions, as the maker rounds them, and the number of matrices
# of the vocabulary that the active ones include (the embedding is looked up, not multiplied by).
# Sources: mistral.ai/news/mixtral-of-experts and /mixtral-8x22b; the cards of Qwen/Qwen3-30B-A3B,
# -235B-A22B and -Coder-480B-A35B; OpenAI's gpt-oss model card, table 1; the card of
# zai-org/GLM-4.5; the cards of meta-llama/Llama-4-Scout and -Maverick (with the vision encoder,
# which is not planned); README_WEIGHTS.md of deepseek-ai/DeepSeek-V3 (36.6 with the head); arXiv
# 2405.04434 (DeepSeek-V2-Lite); moonshotai/Kimi-K2-Instruct (1 T in words, 1,026 B in its
# safetensors).
PUBLISHED = {
    "mixtral-8x7b": (46.7, 12.9, 2), "mixtral-8x22b": (141.0, 39.0, 2), "qwen3-30b-a3b": (30.5, 3.3, 2),
    "qwen3-235b-a22b": (235.0, 22.0, 2), "qwen3-coder-480b-a35b": (480.0, 35.0, 2), "gpt-oss-120b": (116.83, 5.13, 1),
    "gpt-oss-20b": (20.91, 3.61, 1), "glm-4.5": (355.0, 32.0, 0), "glm-4.5-air": (106.0, 12.0, 0),
    "llama-4-scout-17b-16e": (109.0, 17.0, 2), "llama-4-maverick-17b-128e": (400.0, 17.0, 2),
    "deepseek-v3": (671.0, 36.6, 1), "deepseek-v2-lite": (15.7, 2.4, 1), "kimi-k2": (1026.0, 32.0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_those_that_are_published(name: str) -> None:
    total, active, vocabularies = PUBLISHED[name]
    m = KNOWN[name]
    assert m.parameters / 1e9 == pytest.approx(total, rel=0.012)
    assert (m.active_parameters + (vocabularies - 1) * m.hidden * m.vocab) / 1e9 == pytest.approx(active, rel=0.022)


@pytest.mark.parametrize(
    ("name", "gb"),
    # gpt-oss: 60.8 and 12.8 GiB (model card, table 1). DeepSeek-V3: 671B in FP8 with the embedding
    # in 16 bits. Kimi K2 Thinking: 594 GB (its card).
    [
        ("gpt-oss-120b", 60.8 * 1.0737),
        ("gpt-oss-20b", 12.8 * 1.0737),
        ("deepseek-v3", 672.0),
        ("kimi-k2-thinking", 594.0),
    ],
)
def test_checkpoints_are_as_large_as_published(name: str, gb: float) -> None:
    assert KNOWN[name].weight_bytes / 1e9 == pytest.approx(gb, rel=0.01)


@pytest.mark.parametrize(
    ("name", "bytes_per_token"),
    [
        ("deepseek-v3", 61 * 576 * 2), ("kimi-k2", 70_272), ("deepseek-v2-lite", 27 * 576 * 2),
        ("mixtral-8x7b", 131_072), ("gpt-oss-120b", 73_728), ("qwen3-235b-a22b", 192_512), ("glm-4.5", 376_832),
    ],
)  # fmt: skip
def test_kv_bytes_per_token(name: str, bytes_per_token: int) -> None:
    assert KNOWN[name].kv_bytes_per_token == bytes_per_token


def test_layers_with_a_window_keep_no_more_than_that() -> None:
    """In gpt-oss, 18 of 36 layers keep 128 tokens, with 2,048 bytes per token and layer."""
    m = KNOWN["gpt-oss-120b"]
    assert m.kv_bytes(100) == 100 * 73_728
    assert m.kv_bytes(10_128) == 128 * 73_728 + 10_000 * 36_864


def test_latent_attention_multiplies_more_in_decode_than_in_prefill() -> None:
    """A layer of DeepSeek-V3 has 128 heads x 2 x (192 + 128), in decode 128 x 2 x (576 + 512).

    In decode the cache is read once for all heads.
    """
    m = KNOWN["deepseek-v3"]
    assert m.pair_flops == 61 * 128 * 2 * (192 + 128)
    assert m.decode_pair_flops == 61 * 128 * 2 * (576 + 512)
    assert KNOWN["mixtral-8x7b"].decode_pair_flops == KNOWN["mixtral-8x7b"].pair_flops == 32 * 32 * 2 * 256


# ---- config.json ----

DEEPSEEK: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"], "ep_size": 1, "first_k_dense_replace": 3, "hidden_size": 7168,
    "intermediate_size": 18432, "kv_lora_rank": 512, "max_position_embeddings": 163840, "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "num_attention_heads": 128,
    "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]},
    "tie_word_embeddings": False, "torch_dtype": "bfloat16", "v_head_dim": 128, "vocab_size": 129280,
}  # fmt: skip
MIXTRAL: dict[str, Any] = {
    "architectures": ["MixtralForCausalLM"], "hidden_size": 4096, "intermediate_size": 14336,
    "max_position_embeddings": 32768, "num_attention_heads": 32, "num_experts_per_tok": 2, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "num_local_experts": 8, "sliding_window": None, "torch_dtype": "bfloat16",
    "vocab_size": 32000,
}  # fmt: skip
QWEN: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"], "decoder_sparse_step": 1, "head_dim": 128, "hidden_size": 2048,
    "intermediate_size": 6144, "mlp_only_layers": [], "moe_intermediate_size": 768, "num_attention_heads": 32,
    "num_experts": 128, "num_experts_per_tok": 8, "num_hidden_layers": 48, "num_key_value_heads": 4,
    "sliding_window": None, "use_sliding_window": False, "vocab_size": 151936,
}  # fmt: skip
GPT_OSS: dict[str, Any] = {
    "architectures": ["GptOssForCausalLM"], "experts_per_token": 4, "head_dim": 64, "hidden_size": 2880,
    "intermediate_size": 2880, "layer_types": ["sliding_attention", "full_attention"] * 18,
    "max_position_embeddings": 131072, "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 36,
    "num_key_value_heads": 8, "num_local_experts": 128, "sliding_window": 128,
    "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"], "quant_method": "mxfp4"},
    "vocab_size": 201088,
}  # fmt: skip
GLM: dict[str, Any] = {
    "architectures": ["Glm4MoeForCausalLM"], "first_k_dense_replace": 1, "head_dim": 128, "hidden_size": 4096,
    "intermediate_size": 10944, "max_position_embeddings": 131072, "moe_intermediate_size": 1408,
    "n_routed_experts": 128, "n_shared_experts": 1, "num_attention_heads": 96, "num_experts_per_tok": 8,
    "num_hidden_layers": 46, "num_key_value_heads": 8, "vocab_size": 151552,
}  # fmt: skip
MAVERICK: dict[str, Any] = {
    "architectures": ["Llama4ForConditionalGeneration"],
    "text_config": {
        "attention_chunk_size": 8192, "head_dim": 128, "hidden_size": 5120, "interleave_moe_layer_step": 2,
        "intermediate_size": 8192, "intermediate_size_mlp": 16384, "max_position_embeddings": 1048576,
        "no_rope_layers": [], "num_attention_heads": 40, "num_experts_per_tok": 1, "num_hidden_layers": 48,
        "num_key_value_heads": 8, "num_local_experts": 128, "vocab_size": 202048,
    },
}  # fmt: skip
THINKING = DEEPSEEK | {
    "first_k_dense_replace": 1, "max_position_embeddings": 262144, "n_routed_experts": 384, "num_attention_heads": 64,
    "vocab_size": 163840,
    "quantization_config": {
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"group_size": 32, "num_bits": 4, "type": "int"}},
        },
        "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*"], "quant_method": "compressed-tensors",
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (DEEPSEEK, "deepseek-v3"), (MIXTRAL, "mixtral-8x7b"), (GPT_OSS, "gpt-oss-120b"), (GLM, "glm-4.5-air"),
        (THINKING, "kimi-k2-thinking"), (QWEN, "qwen3-30b-a3b"), (MAVERICK, "llama-4-maverick-17b-128e"),
    ],
)  # fmt: skip
def test_the_config_json_of_each_family_gives_the_known_shape(config: dict[str, Any], name: str) -> None:
    known = KNOWN[name]
    context = known.context_tokens  # None if variants differ in it
    assert replace(from_config(config, name), context_tokens=context) == known


@pytest.mark.parametrize(
    ("config", "change", "layers"),
    [
        (QWEN, {"decoder_sparse_step": 2}, 24), (QWEN, {"mlp_only_layers": [0, 47]}, 46),
        (DEEPSEEK, {"moe_layer_freq": 2}, 29), (QWEN, {"decoder_sparse_step": 2, "mlp_only_layers": [0, 1]}, 23),
        (GLM, {"moe_layer_freq": [0] * 6 + [1] * 40}, 40), (GLM, {"first_k_dense_replace": 0}, 46),
        (MAVERICK["text_config"], {"moe_layers": [1, 3, 5]}, 3),
    ],
)  # fmt: skip
def test_which_layers_have_experts(config: dict[str, Any], change: dict[str, Any], layers: int) -> None:
    experts = from_config(config | change, "x").experts
    assert experts is not None
    assert experts.layers == layers


def test_shared_experts_in_each_spelling() -> None:
    widths = [
        from_config(config | change, "x").experts.shared_width  # type: ignore[union-attr]
        for config, change in (
            (QWEN, {"shared_expert_intermediate_size": 5632}), (GLM, {"n_shared_experts": 2}),
            (QWEN, {"num_shared_experts": 2}), (QWEN, {"shared_intermediate_size": 0}),
            (GLM, {"shared_expert_intermediate_size": 1408}),
        )
    ]  # fmt: skip
    assert widths == [5632, 2816, 1536, 0, 1408]


def test_llama_4_attends_in_chunks_where_it_has_rotary_embeddings() -> None:
    text = MAVERICK["text_config"]
    for change, layers in (
        ({}, 36), ({"no_rope_layers": [1, 1, 0] * 16}, 32),
        ({"layer_types": ["chunked_attention", "full_attention"] * 24}, 24),
    ):  # fmt: skip
        window = from_config(text | change, "x").window
        assert window is not None
        assert (window.layers, window.tokens) == (layers, 8192)
    assert from_config(text | {"no_rope_layers": [0] * 48}, "x").window is None
    assert from_config(MIXTRAL, "x").window is None


@pytest.mark.parametrize(
    ("quantization", "bits", "routed_bits"),
    [
        ({"quant_method": "awq", "bits": 4}, 4, 4), ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, 4, 4),
        ({"quant_method": "modelopt", "quant_algo": "FP8"}, 8, 8), ({"quant_method": "mxfp4"}, 16, 4.25),
        ({"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8}}},
          "ignore": ["lm_head"]}, 8, 8),
        ({"config_groups": {"g": {"weights": {"num_bits": 4}}}, "ignore": ["re:.*self_attn.*"]}, 16, 4),
    ],
)  # fmt: skip
def test_how_weights_are_stored(quantization: dict[str, Any], bits: int, routed_bits: float) -> None:
    m = from_config(MIXTRAL | {"quantization_config": quantization}, "x")
    assert (m.weight_bits, m.routed_bits) == (bits, routed_bits)
    assert m.at_bits(8, 16).routed_bits == 8


@pytest.mark.parametrize(
    ("config", "change", "words"),
    [
        (MIXTRAL, {"num_experts_per_tok": None}, "num_experts_per_tok: is missing"),
        (MIXTRAL, {"num_experts_per_tok": 9}, "num_experts_per_tok: 9 of 8 "),
        (MIXTRAL, {"num_local_experts": "many"}, "num_local_experts: 'many' is not a positive integer"),
        (MIXTRAL, {"num_experts": 16}, "num_experts, num_local_experts: say 16 and 8"),
        (MIXTRAL, {"intermediate_size": None}, "intermediate_size: is missing"),
        (GPT_OSS, {"experts_per_token": 2}, "num_experts_per_tok, experts_per_token: say 4 and 2"),
        (GPT_OSS, {"layer_types": ["sliding_attention"] * 35}, "layer_types: has 35 of 36 layers"),
        (GPT_OSS, {"sliding_window": None}, "sliding_window: is missing"),
        (GPT_OSS, {"num_local_experts": None}, "quantization_config: mxfp4"),
        (DEEPSEEK, {"moe_intermediate_size": None}, "moe_intermediate_size: is missing"),
        (DEEPSEEK, {"first_k_dense_replace": 62}, "first_k_dense_replace: 62 of 61 layers"),
        (DEEPSEEK, {"first_k_dense_replace": 61}, "n_routed_experts: 256, but no layer has experts"),
        (DEEPSEEK, {"first_k_dense_replace": -1}, "first_k_dense_replace: -1 is not an integer of 0 or more"),
        (DEEPSEEK, {"moe_layer_freq": [1, 0]}, "moe_layer_freq: must hold a 0 or 1 for each of 61 layers"),
        (DEEPSEEK, {"kv_lora_rank": None}, "kv_lora_rank: is missing, though q_lora_rank"),
        (DEEPSEEK, {"qk_rope_head_dim": None}, "qk_rope_head_dim: is missing"),
        (DEEPSEEK, {"v_head_dim": 0}, "v_head_dim: 0 is not a positive integer"),
        (DEEPSEEK, {"index_topk": 2048}, "index_topk: sparse attention is not planned"),
        (
            DEEPSEEK,
            {"shared_expert_intermediate_size": 512},
            "shared_expert_intermediate_size: 512, but n_shared_experts says 1 of 2048",
        ),
        (
            DEEPSEEK,
            {"quantization_config": {"config_groups": {"g": 4}}},
            "quantization_config: config_groups: must hold objects",
        ),
        (GLM, {"moe_layer_freq": [[1]] * 46}, "moe_layer_freq: must hold a 0 or 1"),
        (QWEN, {"mlp_only_layers": [48]}, "mlp_only_layers: must be a list of layers, 0 to 47"),
        (QWEN, {"mlp_only_layers": 3}, "mlp_only_layers: must be a list"),
        (QWEN, {"linear_num_key_heads": 16}, "linear_num_key_heads: models with state-space"),
        (QWEN, {"attn_type_list": [0, 1]}, "attn_type_list: models with state-space"),
        (QWEN, {"moe_num_experts": 64}, "moe_num_experts: mixtures of experts in this form are not planned"),
    ],
)
def test_what_is_contradictory_or_of_another_form_is_refused_by_field(
    config: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    with pytest.raises(PlanError, match=words):
        from_config(config | change, "x")


FAMILIES = (DEEPSEEK, MIXTRAL, QWEN, GPT_OSS, GLM, MAVERICK, THINKING)
FIELDS = sorted({f for config in FAMILIES for f in (*config, *config.get("text_config", ()))} | {
    "attn_type_list", "index_topk", "mlp_only_layers", "moe_layer_freq", "moe_layers", "no_rope_layers",
    "shared_intermediate_size",
})  # fmt: skip
anything = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 70) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([
            "quant_method", "config_groups", "weights", "num_bits", "ignore", "bits", "group_size", "hidden_size",
        ]),
        inner,
        max_size=3,
    ),
    max_leaves=6,
)  # fmt: skip


@given(st.sampled_from(FAMILIES), st.dictionaries(st.sampled_from(FIELDS), anything, max_size=3), st.booleans())
@settings(max_examples=examples(500))
def test_whatever_a_config_json_holds_gives_a_shape_or_an_error_that_names_a_field(
    config: dict[str, Any], change: dict[str, Any], inside: bool
) -> None:
    if inside and "text_config" in config:
        config, change = config | {"text_config": config["text_config"] | change}, {}
    try:
        m = from_config(config | change, "x")
    except PlanError as error:
        refused = str(error)
    else:
        refused = ""
        assert 0 < m.active_parameters <= m.parameters
        assert m.kv_bytes(100) > 0
    assert not refused or re.match(r"config\.json: \w+", refused)


def test_a_mixture_of_one_expert_is_a_dense_model() -> None:
    assert from_config(MIXTRAL | {"num_local_experts": 1, "num_experts_per_tok": 1}, "x").experts is None
    assert from_config(MIXTRAL | {"num_local_experts": 0}, "x").experts is None


@pytest.mark.parametrize(
    ("name", "known", "bits"),
    [
        ("deepseek-ai/DeepSeek-R1-0528", "deepseek-r1", 8), ("deepseek-ai/DeepSeek-V3.1-Base", "deepseek-v3.1", 8),
        ("Qwen/Qwen3-235B-A22B-Thinking-2507", "qwen3-235b-a22b", 16),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507-FP8", "qwen3-30b-a3b", 8),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b", 16),
        ("moonshotai/Kimi-K2-Instruct-0905", "kimi-k2", 8), ("moonshotai/Kimi-K2-Thinking", "kimi-k2-thinking", 16),
        ("openai/gpt-oss-20b", "gpt-oss-20b", 16),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", "llama-4-scout-17b-16e", 16),
    ],
)  # fmt: skip
def test_names(name: str, known: str, bits: int) -> None:
    assert named(name) == replace(KNOWN[known], weight_bits=bits)


@pytest.mark.parametrize(
    "name", ["deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "deepseek-ai/DeepSeek-V3.2", "Qwen/Qwen3-Next-80B-A3B"]
)
def test_names_of_other_models(name: str) -> None:
    assert named(name) is None
