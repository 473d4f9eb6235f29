"""What a resource says of scaling, as the policy has it."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator import plan
from disagg_operator.api import parse
from disagg_operator.autoscaling import scaling
from disagg_operator.autoscaling.predictive import Peak, PoolLimits, Settings
from disagg_operator.planning.hardware import GPUS
from disagg_operator.planning.model_shape import KNOWN
from disagg_operator.planning.performance import Efficiency, estimate
from disagg_operator.planning.profile import Profile

BOUNDS = {"minReplicas": 2, "maxReplicas": 8}


def settings(**spec: Any) -> Settings:
    return scaling.settings_of(parse(good(**spec)))


def test_every_field_reaches_the_policy() -> None:
    found = settings(
        prefill={"autoscaling": BOUNDS, "accelerator": {"count": 4}},
        decode={"autoscaling": BOUNDS, "accelerator": {"count": 4}},
        objectives={"tpotSeconds": {"p99": 0.03}},
        scaling={
            "overProvisioning": 2.5, "maxGPUs": 48, "ratio": {"min": 0.5, "max": 3}, "roleFlip": True,
            "schedule": [{"name": "morning", "from": "08:30", "to": "10:00", "prefill": 3, "decode": 4}],
            "profile": {"prefill": {"base": 0.01, "perToken": 1e-5}, "decode": {"base": 0.02, "perSequence": 0.001, "kvTokens": 5000}},
        },
    )  # fmt: skip
    assert (found.over_provisioning, found.gpu_budget, found.ratio, found.tpot_s) == (2.5, 48, (0.5, 3.0), 0.03)
    assert found.peaks == (Peak(30600.0, 36000.0, 3, 4),)
    assert found.prefill == PoolLimits(2, 8, 4)
    assert found.role_flip_s is not None
    p = found.profile
    assert (p.a_s, p.b_s_per_token, p.d_s, p.e_s_per_sequence, p.kv_tokens) == (0.01, 1e-5, 0.02, 0.001, 5000)


def test_speed_comes_from_accelerator_and_model_where_both_are_known() -> None:
    h100 = {"product": "NVIDIA-H100-80GB-HBM3", "count": 4}
    a100 = {"product": "NVIDIA-A100-SXM4-80GB", "count": 4}
    both = {"prefill": {"accelerator": h100}, "decode": {"accelerator": a100}}
    found = settings(model={"uri": "hf://meta-llama/Llama-3.1-70B-Instruct"}, **both).profile
    assert 20e-6 < found.b_s_per_token < 200e-6  # Splitwise measured 60 us on four H100
    assert 15e-3 < found.d_s < 45e-3
    same = settings(model={"uri": "hf://meta-llama/Llama-3.1-70B-Instruct"}, prefill={"accelerator": h100}, decode={"accelerator": h100})
    assert same.profile.d_s < found.d_s  # decode runs on what the decode pool has
    unknown = settings(model={"uri": "hf://somebody/something-9t"}, **both).profile
    assert unknown.b_s_per_token == scaling.CPU.b_s_per_token


H200 = {"product": "NVIDIA-H200", "count": 8}


def test_a_model_with_experts_begins_with_its_straight_line_at_the_batch_that_the_pool_runs() -> None:
    """Fewer sequences read fewer experts, so a pool that runs 16 has shorter steps than the line for 256 says."""
    large, small = (
        settings(
            model={"uri": "hf://deepseek-ai/DeepSeek-V3-0324"}, prefill={"accelerator": H200},
            decode={"accelerator": H200, "maxRunningRequests": most},
        ).profile
        for most in (512, 16)
    )  # fmt: skip
    exact = estimate(KNOWN["deepseek-v3"], GPUS["H200"], 8, Efficiency())
    assert exact is not None
    for found, batch in ((large, 256), (small, 16)):
        assert type(found) is Profile  # what policy and simulator compute with
        assert found.step_s(batch, 1000 * batch) == pytest.approx(exact.step_s(batch, 1000 * batch), rel=1e-6)
        assert found.kv_tokens == exact.kv_tokens
    assert small.step_s(16, 0) < 0.6 * large.step_s(16, 0)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("DeepSeek-R1-0528", "deepseek-r1"), ("Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"), ("GLM-4.5-Air", "glm-4.5-air"),
        ("Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"), ("gpt-oss-120b", "gpt-oss-120b"), ("Kimi-K2-Thinking", "kimi-k2-thinking"),
        ("Meta-Llama-3.1-70B-Instruct-AWQ-INT4", "llama-3.1-70b"), ("Llama-4-Scout-17B-16E-Instruct", "llama-4-scout-17b-16e"),
    ],
)  # fmt: skip
def test_the_known_shape_of_a_name(name: str, known: str) -> None:
    assert scaling._shape(name) == KNOWN[known]


@pytest.mark.parametrize("name", ["DeepSeek-R1-Distill-Qwen-7B", "DeepSeek-R1-0528-Qwen3-8B", "DeepSeek-V3.2", "GLM-4.5V", "qwen"])
def test_a_name_that_only_begins_like_a_known_one_is_another_model(name: str) -> None:
    assert scaling._shape(name) is None


def test_an_fp8_variant_has_weights_of_8_bits() -> None:
    found = scaling._shape("Qwen3-235B-A22B-Instruct-2507-FP8")
    assert found is not None
    assert found.weight_bits == found.routed_bits == 8


@pytest.mark.parametrize(
    ("spec", "predictive"),
    [
        ({"decode": {"autoscaling": BOUNDS}}, True),
        ({"decode": {"autoscaling": BOUNDS}, "scaling": {"policy": "queue"}}, False),
        ({"decode": {"autoscaling": BOUNDS | {"metrics": [{"type": "QueueDepth", "target": {"averageValue": 4}}]}}}, False),
    ],
)
def test_the_policy_is_predictive_unless_metrics_or_the_field_say_otherwise(spec: dict[str, Any], predictive: bool) -> None:
    found = plan.scale_plan(good(**spec))
    assert found is not None
    assert set(found.policies) == {"decode"}
    assert found.predictive is predictive


def test_damping_is_as_declared_and_else_the_policys_own() -> None:
    window = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 42}}}
    found = plan.scale_plan(good(prefill={"autoscaling": BOUNDS | window}, decode={"autoscaling": BOUNDS}))
    assert found is not None
    assert found.down_windows_s == {"prefill": 42.0}
    assert (found.policies["prefill"].down_window_s, found.policies["decode"].down_window_s) == (42.0, 300.0)


def test_a_budget_of_gpus_needs_gpus() -> None:
    with pytest.raises(plan.Refused, match=r"spec\.scaling\.maxGPUs"):
        plan.read(good(prefill={"accelerator": {"count": 1}}, decode={"autoscaling": BOUNDS}, scaling={"maxGPUs": 8}))
