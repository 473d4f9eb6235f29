"""Tests of the profile of a resource, which follows from its accelerators and its model."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.performance import declared
from disagg_operator.performance.hardware import GPUS
from disagg_operator.performance.model_shape import KNOWN
from disagg_operator.performance.profile import Profile
from disagg_operator.performance.roof_line import estimate


def profile(**spec: Any) -> Profile:
    return declared.profile_of(parse(good(**spec)))


def test_speed_comes_from_accelerator_and_model_where_both_are_known() -> None:
    h100 = {"product": "NVIDIA-H100-80GB-HBM3", "count": 4}
    a100 = {"product": "NVIDIA-A100-SXM4-80GB", "count": 4}
    both = {"prefill": {"accelerator": h100}, "decode": {"accelerator": a100}}
    found = profile(model={"uri": "hf://meta-llama/Llama-3.1-70B-Instruct"}, **both)
    assert 20e-6 < found.b_s_per_token < 200e-6  # Splitwise measured 60 us on four H100
    assert 15e-3 < found.d_s < 45e-3
    same = profile(
        model={"uri": "hf://meta-llama/Llama-3.1-70B-Instruct"},
        prefill={"accelerator": h100},
        decode={"accelerator": h100},
    )
    assert same.d_s < found.d_s  # decode runs on the accelerator of the decode pool
    unknown = profile(model={"uri": "hf://somebody/something-9t"}, **both)
    assert unknown.b_s_per_token == declared.CPU.b_s_per_token


H200 = {"product": "NVIDIA-H200", "count": 8}


def test_a_model_with_experts_begins_with_its_straight_line_at_the_batch_that_the_pool_runs() -> None:
    """Fewer sequences read fewer experts, so the steps of a pool that runs 16 are shorter."""
    large, small = (
        profile(
            model={"uri": "hf://deepseek-ai/DeepSeek-V3-0324"}, prefill={"accelerator": H200},
            decode={"accelerator": H200, "maxRunningRequests": most},
        )
        for most in (512, 16)
    )  # fmt: skip
    exact = estimate(KNOWN["deepseek-v3"], GPUS["H200"], 8, declared.STARTING)
    assert exact is not None
    for found, batch in ((large, 256), (small, 16)):
        assert type(found) is Profile  # policy and simulator compute with a plain profile
        assert found.step_s(batch, 1000 * batch) == pytest.approx(exact.step_s(batch, 1000 * batch), rel=1e-6)
        assert found.kv_tokens == exact.kv_tokens
    assert small.step_s(16, 0) < 0.6 * large.step_s(16, 0)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("DeepSeek-R1-0528", "deepseek-r1"), ("Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("GLM-4.5-Air", "glm-4.5-air"), ("Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"),
        ("gpt-oss-120b", "gpt-oss-120b"), ("Kimi-K2-Thinking", "kimi-k2-thinking"),
        ("Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "llama-3.1-70b"),
        ("Llama-4-Scout-17B-16E-Instruct", "llama-4-scout-17b-16e"),
    ],
)  # fmt: skip
def test_the_known_shape_of_a_name(name: str, known: str) -> None:
    assert declared._shape(name) == KNOWN[known]


@pytest.mark.parametrize(
    "name", ["DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1-0528-Qwen3-8B", "DeepSeek-V3.2", "GLM-4.5V", "qwen"]
)
def test_a_name_that_only_begins_like_a_known_one_is_another_model(name: str) -> None:
    assert declared._shape(name) is None


def test_an_fp8_variant_has_weights_of_8_bits() -> None:
    found = declared._shape("Qwen3-235B-A22B-Instruct-2507-FP8")
    assert found is not None
    assert found.weight_bits == found.routed_bits == 8


def test_a_declared_speed_takes_the_place_of_the_estimate() -> None:
    speed = {
        "prefill": {"base": 0.01, "perToken": 2e-5, "perToken2": 3e-9},
        "decode": {"base": 0.02, "perSequence": 4e-5, "perKvToken": 5e-9, "kvTokens": 1000},
    }  # fmt: skip
    found = profile(
        scaling={"profile": speed},
        prefill={"maxBatchTokens": 512},
        decode={"accelerator": H200, "maxRunningRequests": 9},
    )
    assert found == Profile(8, 0.01, 2e-5, 3e-9, 0.02, 4e-5, 5e-9, 1000, batch_tokens=512, max_running=9)
