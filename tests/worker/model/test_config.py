"""Tests of config.json: supported values are read correctly, all others are refused by name."""

from __future__ import annotations

import contextlib
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.worker import checkpoints
from tests.worker.checkpoints import LLAMA3_ROPE, TINY

from disagg_protocol.errors import ModelError
from disagg_worker.model.config import LinearScaling, Llama3Scaling, YarnScaling, parse_config, unknown_fields
from disagg_worker.model.loader import load_config


def test_a_config_is_read_with_its_defaults() -> None:
    config = parse_config({k: v for k, v in TINY.items() if k != "num_key_value_heads"}, {})
    assert (config.heads, config.kv_heads, config.head_dim) == (4, 4, 8)
    assert (config.rope_theta, config.rope_scaling) == (10000.0, None)
    assert (config.eos_token_ids, config.bos_token_id, config.tied_embeddings) == ((0,), None, True)


@pytest.mark.parametrize(
    ("raw", "generation", "expected"),
    [
        ({"eos_token_id": 5}, {}, (5,)),
        ({"eos_token_id": [5, 6]}, {}, (5, 6)),
        ({"eos_token_id": 5}, {"eos_token_id": [7, 8]}, (7, 8)),
        ({"eos_token_id": None}, {}, ()),
    ],
    ids=["one", "several", "generation_config.json wins", "none"],
)
def test_end_tokens_come_from(raw: dict[str, Any], generation: dict[str, Any], expected: tuple[int, ...]) -> None:
    assert parse_config({**TINY, **raw}, generation).eos_token_ids == expected


@pytest.mark.parametrize("field", ["rope_scaling", "rope_parameters"])
def test_llama_3_rope_scaling_is_read_from_either_field(field: str) -> None:
    config = parse_config({**TINY, field: {**LLAMA3_ROPE, "rope_theta": 500000.0}}, {})
    assert config.rope_theta == 500000.0
    assert config.rope_scaling == Llama3Scaling(8.0, 1.0, 4.0, 64)


def test_other_ways_to_stretch_are_read() -> None:
    assert parse_config({**TINY, "rope_scaling": {"type": "linear", "factor": 4}}, {}).rope_scaling == LinearScaling(
        4.0
    )
    assert parse_config({**TINY, "rope_scaling": {"type": "dynamic", "factor": 4}}, {}).rope_scaling is None
    config = parse_config(
        {**TINY, "rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 128}}, {}
    )
    assert isinstance(config.rope_scaling, YarnScaling)
    assert astuple(config.rope_scaling) == (4.0, 128.0, pytest.approx(1.1386, abs=1e-4), 32.0, 1.0, True)
    assert config.max_positions == 512


def test_an_empty_field_has_its_default() -> None:
    config = parse_config({**TINY, "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": None}, {})
    assert (config.kv_heads, config.head_dim, config.rms_norm_eps) == (4, 8, 1e-6)


def test_the_attention_factor_of_yarn_is_that_of_its_two_scales() -> None:
    yarn = {"type": "yarn", "factor": 4, "original_max_position_embeddings": 128, "mscale": 2.0, "mscale_all_dim": 1.0}
    config = parse_config({**TINY, "rope_scaling": yarn}, {})
    assert isinstance(config.rope_scaling, YarnScaling)
    assert config.rope_scaling.attention_factor == pytest.approx((0.2 * math.log(4) + 1) / (0.1 * math.log(4) + 1))


@pytest.mark.parametrize(
    ("architecture", "raw", "windows"),
    [
        ("LlamaForCausalLM", {}, (None, None)),
        ("MistralForCausalLM", {"sliding_window": 5}, (5, 5)),
        ("MistralForCausalLM", {"sliding_window": None}, (None, None)),
        ("MistralForCausalLM", {}, (4096, 4096)),
        ("Qwen2ForCausalLM", {"use_sliding_window": True, "max_window_layers": 1}, (None, 4096)),
        ("Qwen2ForCausalLM", {"sliding_window": 5}, (None, None)),
        ("Qwen2ForCausalLM", {"sliding_window": 5, "use_sliding_window": True, "max_window_layers": 1}, (None, 5)),
        (
            "Qwen3ForCausalLM",
            {"sliding_window": 5, "use_sliding_window": True, "layer_types": ["sliding_attention", "full_attention"]},
            (5, None),
        ),
    ],
)
def test_windows_are_those_of_the_family(
    architecture: str, raw: dict[str, Any], windows: tuple[int | None, ...]
) -> None:
    assert parse_config({**TINY, "architectures": [architecture], **raw}, {}).windows == windows


def test_fields_that_nobody_knows_are_told_and_those_without_a_value_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert unknown_fields({**TINY, "use_cache": True, "clip_qkv": None, "new_thing": None, "other": False}) == []
    folder = checkpoints.make(tmp_path, secret_sauce=3, another={"x": 1})
    load_config(folder)
    assert "another, secret_sauce: not known here" in caplog.text


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["MixtralForCausalLM"]}, "architectures: 'MixtralForCausalLM'"),
    ({"architectures": []}, "architectures"),
    ({"architectures": None}, "architectures"),
    ({"final_logit_softcapping": 30.0}, "final_logit_softcapping: 30.0"),
    ({"num_local_experts": 8}, "num_local_experts: 8"),
    ({"layer_types": ["full_attention"]}, "layer_types: must name a type for each of the 2 layers"),
    ({"layer_types": ["full_attention", "chunked_attention"]}, "layer_types: 'chunked_attention'"),
    ({"architectures": ["Qwen2ForCausalLM"], "layer_types": ["sliding_attention"] * 2}, "sliding_window is not in use"),
    ({"architectures": ["MistralForCausalLM"], "sliding_window": -1}, "sliding_window: -1"),
    ({"attention_chunk_size": 8192}, "attention_chunk_size: 8192"),
    ({"use_mrope": True}, "use_mrope: True"),
    ({"tie_word_embeddings": "yes"}, "tie_word_embeddings: 'yes'"),
    ({"attention_bias": 1}, "attention_bias: 1"),
    ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    ({"sliding_window": 4096}, "sliding_window: 4096"),
    ({"rope_scaling": {"rope_type": "longrope", "factor": 4.0}}, "rope_scaling.rope_type: 'longrope'"),
    ({"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor: 0"),
    ({"rope_parameters": {k: v for k, v in LLAMA3_ROPE.items() if k != "factor"}}, "rope_parameters.factor"),
    ({"rope_scaling": {**LLAMA3_ROPE, "low_freq_factor": 4.0}}, "high_freq_factor"),
    ({"rope_scaling": [1]}, "rope_scaling"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
    ({"num_hidden_layers": 0}, "num_hidden_layers: 0"),
    ({"vocab_size": "many"}, "vocab_size: 'many'"),
    ({"hidden_size": True}, "hidden_size: True"),
    ({"head_dim": 7}, "head_dim: 7 is odd"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps: -1.0"),
    ({"rope_theta": "big"}, "rope_theta: 'big'"),
    ({"eos_token_id": ["</s>"]}, "eos_token_id"),
    (
        {"rope_scaling": {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}},
        "rope_scaling.partial_rotary_factor",
    ),
    (
        {"architectures": ["Qwen2ForCausalLM"], "use_sliding_window": True, "max_window_layers": -1},
        "max_window_layers: -1 is not a number of layers",
    ),
]


@pytest.mark.parametrize(("change", "says"), REFUSED, ids=[says for _, says in REFUSED])
def test_what_would_be_computed_wrongly_is_refused_by_name(change: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelError, match=says.replace("(", r"\(")):
        parse_config({**TINY, **change}, {})


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 1000)
    | st.floats(allow_nan=False)
    | st.sampled_from(["", "yarn", "linear", "x"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*LLAMA3_ROPE, "type", "x"]), inner, max_size=3)
    ),
    max_leaves=4,
)


# A busy machine generates examples slowly, for which the parser is not to blame.
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.sampled_from([*TINY, "rope_scaling", "rope_parameters", "rope_theta", "head_dim"]), json_values, max_size=4
    )
)
def test_any_json_is_read_or_refused_but_never_crashes(change: dict[str, Any]) -> None:
    with contextlib.suppress(ModelError):
        parse_config({**TINY, **change}, {})


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_hidden_layers", 10**9), ("max_position_embeddings", 10**10), ("vocab_size", 10**9), ("head_dim", 10**8)],
)
def test_what_no_model_has_is_refused_before_it_costs_memory(field: str, value: int) -> None:
    with pytest.raises(ModelError, match=f"{field}: is over"):
        parse_config({**TINY, field: value}, {})
