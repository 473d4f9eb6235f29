"""A DisaggScaler becomes settings of the policy, or is refused with the field to blame."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.controller.scalers.scalers import scaler_object

from disagg_operator.api.namespace_policy import NamespacePolicy
from disagg_operator.autoscaling.policy.predictive import Peak, PoolLimits
from disagg_operator.controller.scalers.scaler_settings import RefusedScaler, ScalerPlan, scaler_plan
from disagg_operator.performance.declared import CPU

H100 = "NVIDIA-H100-80GB-HBM3"


def plan(**spec: Any) -> ScalerPlan:
    return scaler_plan(scaler_object(**spec), NamespacePolicy(prometheus_hosts=("thanos",)))


def test_every_field_reaches_the_policy() -> None:
    found = plan(
        mode="Active",
        objectives={"ttftSeconds": {"p99": 2}, "tpotSeconds": {"p99": 0.05}},
        prefill={
            "scaleTargetRef": {"name": "p"}, "minReplicas": 2, "maxReplicas": 8, "gpus": 4, "metricsPort": 8200,
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
        },
        scaling={
            "overProvisioning": 1.5, "maxGPUs": 40, "ratio": {"min": 1, "max": 3},
            "schedule": [{"name": "m", "from": "08:30", "to": "10:00", "prefill": 4}],
            "profile": {
                "prefill": {"base": 0.01, "perToken": 0.001}, "decode": {"base": 0.02, "perSequence": 0.001},
            },
        },
    )  # fmt: skip
    settings = found.scaling.settings
    assert (settings.prefill, settings.decode) == (PoolLimits(2, 8, 4), PoolLimits(1, 8, 1))
    assert (settings.tpot_s, settings.over_provisioning, settings.gpu_budget) == (0.05, 1.5, 40)
    assert settings.ratio == (1, 3)
    assert settings.peaks == (Peak(30_600, 36_000, 4, 0),)
    assert (settings.profile.a_s, settings.profile.d_s, settings.profile.max_running) == (0.01, 0.02, 256)
    assert found.scaling.down_windows_s == {"prefill": 60}
    assert not found.scaling.dry_run
    assert (found.port("prefill"), found.port("decode")) == (8200, 8000)


def test_a_shadow_is_a_dry_run_with_the_ports_of_its_engine() -> None:
    found = plan(metrics={"engine": "sglang"})
    assert found.scaling.dry_run
    assert not found.active
    assert found.port("decode") == 30_000
    ours = plan(metrics={"engine": "builtin", "routers": {"matchLabels": {"app": "router"}}, "port": 81})
    assert (ours.metrics, ours.port("decode"), ours.router_port) == (None, 81, 8080)


@pytest.mark.parametrize(
    ("model", "product", "estimated"),
    [("Llama-3.1-70B-Instruct", H100, True), ("Llama-3.1-70B-Instruct", None, False), (None, H100, False)],
)
def test_speed_is_estimated_from_model_and_gpus(model: str | None, product: str | None, estimated: bool) -> None:
    pools = {
        role: {"scaleTargetRef": {"name": role}, "maxReplicas": 8, "gpus": 4}
        | ({"gpuProduct": product} if product else {})
        for role in ("prefill", "decode")
    }
    found = plan(scaling={"model": model} if model else {}, **pools).scaling.settings.profile
    assert (found.d_s != CPU.d_s) is estimated


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"prefill": {"scaleTargetRef": {"name": "d"}, "maxReplicas": 8}}, "InvalidSpec", "different targets"),
        ({"metrics": {"engine": "lmdeploy"}}, "InvalidSpec", "must be one of"),
        ({"metrics": {"engine": "builtin"}}, "InvalidSpec", "routers must be set"),
        ({"decode": {"scaleTargetRef": {"name": "d"}, "minReplicas": 2, "maxReplicas": 1}}, "InvalidSpec", "minR"),
        ({"observability": {"prometheus": {"url": "http://other:9090"}}}, "NotPermitted", "prometheus.url"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_out_is_refused(spec: dict[str, Any], reason: str, words: str) -> None:
    with pytest.raises(RefusedScaler, match=words) as refused:
        plan(**spec)
    assert refused.value.reason == reason


def test_a_permitted_prometheus_is_asked() -> None:
    found = plan(observability={"prometheus": {"url": "http://thanos:9090/"}}).prometheus
    assert found is not None
    assert found.url == "http://thanos:9090"
