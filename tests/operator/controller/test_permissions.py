"""What a resource may not have in its namespace."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.operator.api.resources import good, of, patched, watched

from disagg_operator.api.namespace_policy import NamespacePolicy
from disagg_operator.api.v1alpha1 import read
from disagg_operator.controller.permissions import MAX_BYTES, MAX_DEPTH, owner_of, too_deep, unpermitted

_SRIOV = {"type": "sriov", "resourceName": "a/b"}


_ROOT = {"attachmentRef": {"name": "n"}, "rdmaResource": {"name": "a/b"}, "rdmaMode": "Root"}


def attached(**attachment: Any) -> dict[str, Any]:
    return good(kvTransfer={"network": {"attachment": attachment}})


POLICY = NamespacePolicy(
    images=("good/*",),
    network_attachments=("nets/fast",),
    prometheus_hosts=("*.svc", "[::1]"),
    upstream_hosts=("*.prod",),
    tracing_hosts=("*.obs",),
)
OPEN = NamespacePolicy.model_validate({"allow": ["HostInterfaces"]})


@pytest.mark.parametrize(
    ("resource", "policy", "paths"),
    [
        (of("vllm", engine={"image": "bad/a"}, router={"image": "bad/b"}), POLICY, ["spec.engine.image",
         "spec.router.image"]),
        (of("vllm", engine={"image": "good/a"}), POLICY, []),
        (watched("https://evil:1/x"), POLICY, ["spec.observability.prometheus.url"]),
        (watched("https://p.svc:1/x"), POLICY, []),
        (good(router={"upstream": {"url": "http://p.svc:1", "percent": 1}}), POLICY, ["spec.router.upstream.url"]),
        (good(router={"upstream": {"url": "http://VLLM.prod", "percent": 1}}), POLICY, []),
        (good(router={"upstream": {"url": "http://[fe80::1]", "percent": 1}}), OPEN, ["spec.router.upstream.url"]),
        (good(router={"upstream": {"url": "http://169.254.169.254/v1", "percent": 1}}), OPEN, [
            "spec.router.upstream.url"
        ]),
        (good(observability={"tracing": {"endpoint": "http://c.obs:4318"}}), POLICY, []),
        (good(observability={"tracing": {"endpoint": "http://c.evil:4318"}}), POLICY, [
            "spec.observability.tracing.endpoint"
        ]),
        (good(observability={"tracing": {"endpoint": "http://169.254.169.254"}}), OPEN, [
            "spec.observability.tracing.endpoint"
        ]),
        (watched("http://[::1]:1"), POLICY, []),
        (watched("http://[::2]:1"), POLICY, ["spec.observability.prometheus.url"]),
        (good(kvTransfer={"network": {"attachmentRef": {"name": "fast"}}}), POLICY, []),
        (good(kvTransfer={"network": {"attachmentRef": {"name": "fast", "namespace": "default"}}}), POLICY, []),
        (good(kvTransfer={"network": {"attachmentRef": {"name": "fast", "namespace": "nets"}}}), POLICY, []),
        (
            good(kvTransfer={"network": {"attachmentRef": {"name": "slow", "namespace": "nets"}}}), POLICY,
            ["spec.kvTransfer.network.attachmentRef.namespace"],
        ),
        (attached(type="host-device", master="eth1", ipam={}), POLICY, ["spec.kvTransfer.network.attachment.type"]),
        (attached(type="host-device", master="eth1", ipam={}), OPEN, []),
        # A device plugin hands it out, so it is none of the node's own.
        (attached(type="host-device", resourceName="a/b", ipam={}), POLICY, []),
        (
            good(kvTransfer={"network": {"rails": [{"name": "fast", "namespace": "nets", "resourceName": "a/b"},
             {"name": "slow", "namespace": "nets", "resourceName": "a/b"}]}}), POLICY,
            ["spec.kvTransfer.network.rails[1].namespace"],
        ),
        (good(kvTransfer={"network": _ROOT}), POLICY, ["spec.kvTransfer.network.rdmaMode"]),
        (good(kvTransfer={"network": _ROOT}), NamespacePolicy.model_validate({"allow": ["Privileged"]}), []),
        (
            attached(**_SRIOV, ipam={"type": "host-local", "dataDir": "/etc", "ranges": []}), POLICY,
            ["spec.kvTransfer.network.attachment.ipam.dataDir"],
        ),
        (attached(**_SRIOV, subnet="10.9.0.0/24"), POLICY, []),
        (
            good(router={"podTemplate": {"spec": {"hostNetwork": True, "serviceAccountName": "chat-router"}}}), POLICY,
            ["spec.router.podTemplate.spec.hostNetwork"],
        ),
        (
            good(router={"podTemplate": {"spec": {"containers": [{"name": "main",
             "env": [{"name": "DISAGG_PORT"}]}]}}}),
            POLICY, ["spec.router.podTemplate.spec.containers[main].env[DISAGG_PORT]"],
        ),
        (patched("prefill", hostPID=True), POLICY, ["spec.prefill.podTemplate.spec.hostPID"]),
        (
            good(decode={"podTemplate": {"metadata": {"annotations": {"a": "x" * MAX_BYTES}}}}), POLICY,
            ["spec.decode.podTemplate"],
        ),
    ],
)  # fmt: skip
def test_what_is_not_permitted_names_its_field(
    resource: dict[str, Any], policy: NamespacePolicy, paths: list[str]
) -> None:
    assert [violation.path for violation in unpermitted(read(resource), policy)] == paths


def test_the_devices_of_a_worker_are_those_of_all_fields() -> None:
    network = {"attachment": {**_SRIOV, "subnet": "10.9.0.0/24"}, "rdmaResource": {"name": "rdma/a"}}
    found = owner_of(read(good(decode={"accelerator": {"count": 1}}, kvTransfer={"network": network})), "decode")
    assert found.devices == {"nvidia.com/gpu", "rdma/a", "a/b"}
    assert found.has_network
    plain = owner_of(read(patched("decode", hostPID=True)), "decode")
    assert (plain.devices, plain.has_network, plain.grace_s) == (frozenset(), False, 300)
    assert "hostPID" not in plain.template["spec"]
    reference = owner_of(read(good(kvTransfer={"network": {"attachmentRef": {"name": "n"}}})), "prefill")
    assert reference.devices == frozenset()


def test_a_pod_template_adds_claims_and_leaves_that_of_the_spec_alone() -> None:
    def found(claims: Any) -> list[str]:
        pod = {"deviceClaim": {"templateName": "pairs"}, "podTemplate": {"spec": {"resourceClaims": claims}}}
        return [violation.path for violation in unpermitted(read(good(decode=pod)), POLICY)]

    path = "spec.decode.podTemplate.spec.resourceClaims[devices]"
    more = {"name": "more", "resourceClaimName": "x"}
    assert found([more]) == []
    assert found([{"name": "devices", "resourceClaimName": "x"}]) == [path]
    assert found(None) == [path]


def nested(depth: int) -> Any:
    return json.loads('{"a":' * depth + "{}" + "}" * depth)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"prefill": {"podTemplate": {"spec": nested(MAX_DEPTH)}}}, "spec.prefill.podTemplate"),
        ({"kvTransfer": {"network": {"attachment": {"ipam": nested(MAX_DEPTH)}}}}, "spec.kvTransfer"),
        ({"prefill": {"podTemplate": {"spec": nested(MAX_DEPTH - 4)}}}, None),
        ([], None),
        ({"prefill": [nested(MAX_DEPTH)]}, "spec.prefill"),
    ],
)
def test_a_part_that_is_too_deep_is_named(spec: Any, path: str | None) -> None:
    found = too_deep({"spec": spec})
    assert (None if found is None else found.path) == path
