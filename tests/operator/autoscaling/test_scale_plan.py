"""The scaling settings of a resource reach the policies."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.autoscaling import scale_plan
from disagg_operator.autoscaling.policy.predictive import Peak, PoolLimits, Settings
from disagg_operator.controller import acceptance

BOUNDS = {"minReplicas": 2, "maxReplicas": 8}


def settings(**spec: Any) -> Settings:
    return scale_plan.settings_of(parse(good(**spec)))


def test_every_field_reaches_the_policy() -> None:
    found = settings(
        prefill={"autoscaling": BOUNDS, "accelerator": {"count": 4}},
        decode={"autoscaling": BOUNDS, "accelerator": {"count": 4}},
        objectives={"tpotSeconds": {"p99": 0.03}},
        scaling={
            "overProvisioning": 2.5, "maxGPUs": 48, "ratio": {"min": 0.5, "max": 3}, "roleFlip": True,
            "schedule": [{"name": "morning", "from": "08:30", "to": "10:00", "prefill": 3, "decode": 4}],
            "profile": {
                "prefill": {"base": 0.01, "perToken": 1e-5},
                "decode": {"base": 0.02, "perSequence": 0.001, "kvTokens": 5000},
            },
        },
    )  # fmt: skip
    assert (found.over_provisioning, found.gpu_budget, found.ratio, found.tpot_s) == (2.5, 48, (0.5, 3.0), 0.03)
    assert found.peaks == (Peak(30600.0, 36000.0, 3, 4),)
    assert found.prefill == PoolLimits(2, 8, 4)
    assert found.role_flip_s is not None
    p = found.profile
    assert (p.a_s, p.b_s_per_token, p.d_s, p.e_s_per_sequence, p.kv_tokens) == (0.01, 1e-5, 0.02, 0.001, 5000)


@pytest.mark.parametrize(
    ("spec", "predictive"),
    [
        ({"decode": {"autoscaling": BOUNDS}}, True),
        ({"decode": {"autoscaling": BOUNDS}, "scaling": {"policy": "queue"}}, False),
        (
            {"decode": {"autoscaling": BOUNDS | {"metrics": [{"type": "QueueDepth", "target": {"averageValue": 4}}]}}},
            False,
        ),
    ],
)
def test_the_policy_is_predictive_unless_metrics_or_the_field_say_otherwise(
    spec: dict[str, Any], predictive: bool
) -> None:
    found = acceptance.scale_plan(good(**spec))
    assert found is not None
    assert set(found.policies) == {"decode"}
    assert found.predictive is predictive


def test_damping_is_as_declared_and_else_the_policys_own() -> None:
    window = {"behavior": {"scaleDown": {"stabilizationWindowSeconds": 42}}}
    found = acceptance.scale_plan(good(prefill={"autoscaling": BOUNDS | window}, decode={"autoscaling": BOUNDS}))
    assert found is not None
    assert found.down_windows_s == {"prefill": 42.0}
    assert (found.policies["prefill"].down_window_s, found.policies["decode"].down_window_s) == (42.0, 300.0)


def test_a_budget_of_gpus_needs_gpus() -> None:
    with pytest.raises(acceptance.Refused, match=r"spec\.scaling\.maxGPUs"):
        acceptance.accept(
            good(prefill={"accelerator": {"count": 1}}, decode={"autoscaling": BOUNDS}, scaling={"maxGPUs": 8})
        )
