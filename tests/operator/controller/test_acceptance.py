"""A resource is refused for reasons that neither the schema nor a rule of the API covers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.api.resources import good

from disagg_operator.api import base, parse
from disagg_operator.api.namespace_policy import NamespacePolicy
from disagg_operator.api.quantity import quantity_bytes
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.controller import acceptance
from disagg_operator.controller.feasibility import NEVER_READY
from disagg_operator.controller.replicas import Declared

REPO = Path(__file__).resolve().parents[3]
_GPU = {"accelerator": {"count": 1}}


@pytest.mark.parametrize(
    ("spec", "reason", "message"),
    [
        ({"decode": {"kvCacheSize": "0"}}, "InvalidSpec", "spec.decode.kvCacheSize: must be above 0"),
        ({"prefill": {"kvCacheSize": "0.1"}}, "InvalidSpec", "spec.prefill.kvCacheSize: must be above 0"),
        ({"scaling": {"maxGPUs": 8}}, "InvalidSpec", "spec.scaling.maxGPUs: both pools must have an accelerator"),
        (
            {"scaling": {"maxGPUs": 8}, "prefill": _GPU, "decode": {"accelerator": {"count": 0}}},
            "InvalidSpec",
            "spec.scaling.maxGPUs: both pools must have an accelerator",
        ),
        (
            {"prefill": {"parallelism": {"tensor": 5}}},
            "UnsupportedParallelism",
            "spec.prefill.parallelism.tensor: 5 ranks, but without GPUs at most 4 are supported",
        ),
        (
            {"decode": {**_GPU, "parallelism": {"tensor": 2}}},
            "UnsupportedParallelism",
            "spec.decode.parallelism.tensor: 2 ranks, but accelerator.count is 1",
        ),
        ({"prefill": {"replicas": -1}}, "InvalidSpec", "spec.prefill.replicas: "),
    ],
)
def test_what_can_not_be_carried_out_is_refused_by_name(spec: dict[str, Any], reason: str, message: str) -> None:
    with pytest.raises(acceptance.Refused) as caught:
        acceptance.accept(good(**spec))
    assert (caught.value.reason, str(caught.value)[: len(message)]) == (reason, message)


@pytest.mark.parametrize(
    "spec",
    [
        {"prefill": {"parallelism": {"tensor": 4}}},
        {"scaling": {"maxGPUs": 8}, "prefill": _GPU, "decode": _GPU},
        {"prefill": {"kvCacheSize": "1"}, "decode": {"kvCacheSize": 1}},
    ],
)
def test_what_can_just_be_carried_out_is(spec: dict[str, Any]) -> None:
    assert acceptance.accept(good(**spec)).resource == parse(good(**spec))


@given(st.from_regex(base._BYTES, fullmatch=True) | st.integers(1, 1 << 50))
def test_every_size_that_the_schema_lets_pass_is_a_quantity_of_bytes(size: str | int) -> None:
    assert quantity_bytes(size) >= 0


@given(st.from_regex(base._NUMBER, fullmatch=True) | st.integers(1, 999_999))
def test_every_target_that_the_schema_lets_pass_is_a_number_above_0(target: str | int) -> None:
    autoscaling = {"maxReplicas": 2, "metrics": [{"target": {"averageValue": target}}]}
    found = parse(good(prefill={"autoscaling": autoscaling})).spec.prefill.autoscaling
    assert found is not None
    assert 0.0 < found.queue_target(4.0) < 1e6


SCALED = {"autoscaling": {"minReplicas": 2, "maxReplicas": 8}}


def test_a_pool_is_declared_by_its_size_or_by_its_bounds() -> None:
    declared = acceptance.accept(good(prefill={"replicas": 3}, decode=SCALED)).declared
    assert declared == {"prefill": Declared(replicas=3), "decode": Declared(bounds=(2, 8))}


def test_only_pools_with_bounds_are_scaled_and_what_is_not_declared_has_its_default() -> None:
    plan = acceptance.accept(good(prefill={"replicas": 3}, decode=SCALED)).scaling
    assert plan.policies == {"decode": PoolRules(2, 8, target=32.0, down_window_s=300.0)}
    assert (plan.down_windows_s, plan.prometheus, plan.dry_run, plan.suspended) == ({}, None, False, False)


def test_a_declared_target_and_window_are_kept() -> None:
    rules = {
        "maxReplicas": 4, "metrics": [{"target": {"averageValue": "2.5"}}],
        "behavior": {"scaleDown": {"stabilizationWindowSeconds": 60}},
    }  # fmt: skip
    plan = acceptance.accept(good(prefill={"autoscaling": rules}, decode=SCALED)).scaling
    assert plan.policies["prefill"] == PoolRules(1, 4, target=2.5, down_window_s=60.0)
    assert plan.down_windows_s == {"prefill": 60.0}


def test_the_server_to_read_and_the_switches_are_those_of_the_spec() -> None:
    plan = acceptance.accept(
        good(suspend=True, scaling={"dryRun": True}, observability={"prometheus": {"url": "https://host:9090"}})
    ).scaling
    assert plan.prometheus is not None
    assert (plan.prometheus.url, plan.dry_run, plan.suspended) == ("https://host:9090", True, True)


_ATTACHMENT = {"attachment": {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}}


@pytest.mark.parametrize(
    ("network", "attachment", "interface"),
    [
        (None, None, None),
        (_ATTACHMENT, ("default", "chat-kv"), "net1"),
        ({"attachmentRef": {"name": "fast"}, "interface": "rdma0"}, ("default", "fast"), "rdma0"),
        ({"attachmentRef": {"name": "fast", "namespace": "nets"}}, ("nets", "fast"), "net1"),
        ({"rails": [{"name": "rail0", "namespace": "nets", "resourceName": "a/rail0"}]}, ("nets", "rail0"), "net1"),
    ],
)
def test_the_attachment_is_the_one_that_is_referred_to_or_rendered(
    network: dict[str, Any] | None, attachment: tuple[str, str] | None, interface: str | None
) -> None:
    found = acceptance.accept(good(kvTransfer={} if network is None else {"network": network}))
    assert (found.attachment, found.interface) == (attachment, interface)


@pytest.mark.parametrize("path", sorted((REPO / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_example_is_carried_out_and_nothing_of_it_is_questionable(path: Path) -> None:
    found = acceptance.assess(yaml.safe_load(path.read_text()), NamespacePolicy())
    assert [*found.violations, *found.questions] == []


@pytest.mark.parametrize("path", sorted((REPO / "examples").glob("*.yaml")), ids=lambda path: path.stem)
def test_an_example_speaks_of_no_refusal_that_would_not_come(path: Path) -> None:
    found = yaml.safe_load(path.read_text())
    found["spec"].get("kvTransfer", {}).pop("fallback", None)
    reasons = {v.reason for v in acceptance.assess(found, NamespacePolicy()).violations}
    assert (NEVER_READY in path.read_text()) == (NEVER_READY in reasons)


def test_what_is_nested_too_deep_is_refused_before_it_is_read() -> None:
    deep: dict[str, Any] = {}
    for _ in range(60):
        deep = {"a": deep}
    with pytest.raises(acceptance.Refused, match=r"spec.prefill.podTemplate: is nested"):
        acceptance.accept(good(prefill={"podTemplate": {"spec": deep}}))


def test_a_broken_rule_may_keep_the_rest_from_being_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise ValueError("no such bound")

    monkeypatch.setattr(acceptance, "infeasible", fails)
    assert [v.path for v in acceptance.assess(good(model={"revision": "x"})).violations] == ["spec.model.revision"]
    with pytest.raises(ValueError, match="no such bound"):
        acceptance.assess(good())


def test_a_refused_resource_has_no_plan_to_scale_by() -> None:
    assert acceptance.scale_plan(good(decode=SCALED)) == acceptance.accept(good(decode=SCALED)).scaling
    assert acceptance.scale_plan(good(prefill={"replicas": -1})) is None
