"""Tests of the parts of pods; those of whole pods are in test_pod_templates.py."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.desired import pod_parts as parts
from disagg_operator.desired import renderer
from disagg_operator.vocabulary import Obj


def test_variables_are_in_order() -> None:
    assert parts.env({"B": "2", "A": "1"}) == [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    assert parts.env_field("A", "status.podIP")["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"


def test_a_container_has_no_rights_but_those_it_is_given() -> None:
    assert parts.security()["capabilities"] == {"drop": ["ALL"]}
    assert parts.security(["IPC_LOCK"])["capabilities"] == {"drop": ["ALL"], "add": ["IPC_LOCK"]}
    assert parts.pod_security().items() >= parts.user().items()


def test_a_probe_asks_by_http() -> None:
    assert parts.probe("/x", 1, 2, 3)["httpGet"] == {"path": "/x", "port": 1, "scheme": "HTTP"}


def test_the_key_is_that_of_the_deployment() -> None:
    assert parts.key_volume(parse(good()))["secret"]["secretName"] == "chat-cluster-key"


def test_who_may_lock_memory() -> None:
    network = {"attachmentRef": {"name": "n"}, "rdmaResource": {"name": "a/b"}}
    plain = parse(good(kvTransfer={"transport": "rdma", "fallback": "Warn", "network": network}))
    assert (parts.lock_capabilities(plain, renderer.CURRENT), parts.lock_user(plain)) == (None, {})
    assert parts.lock_capabilities(plain, renderer.FIRST) == ["IPC_LOCK"]  # as it was, without any effect
    root = parse(good(kvTransfer={"network": network | {"rdmaMode": "Root"}}))
    assert parts.lock_capabilities(root, renderer.CURRENT) == ["IPC_LOCK"]
    # Root without further capabilities reads the files of the pod as their group.
    group = parts.pod_security()["fsGroup"]
    assert parts.lock_user(root) == {"runAsNonRoot": False, "runAsUser": 0, "runAsGroup": group}


def test_all_devices_are_asked_for() -> None:
    network = {"attachment": {"type": "sriov", "resourceName": "a/vf", "subnet": "10.0.0.0/24"}}
    resource = good(
        prefill={"accelerator": {"count": 2}, "resources": {"limits": {"cpu": 1}}},
        kvTransfer={"network": network | {"rdmaResource": {"name": "rdma/hca"}}},
    )
    devices = {"nvidia.com/gpu": "2", "rdma/hca": "1", "a/vf": "1"}
    assert parts.worker_resources(parse(resource), "prefill", renderer.CURRENT) == {
        "limits": {"cpu": "1", **devices},
        "requests": {"memory": "8Gi", **devices},
    }
    assert parts.worker_resources(parse(resource), "prefill", renderer.FIRST) == {
        "limits": {"cpu": "1", **devices},
        "requests": devices,
    }


@pytest.mark.parametrize(
    ("pool", "requests"),
    [
        pytest.param({}, {"cpu": "100m", "memory": "512Mi"}, id="nothing is said"),
        pytest.param({"resources": {"requests": {"cpu": 2}}}, {"cpu": "2", "memory": "512Mi"}, id="a part is said"),
        pytest.param({"resources": {"limits": {"memory": "8Gi"}}}, {"cpu": "100m"}, id="a limit is a request too"),
        pytest.param(
            {"resources": {"requests": {"cpu": 1, "memory": "1Gi"}}}, {"cpu": "1", "memory": "1Gi"}, id="all is said"
        ),
    ],
)
def test_workers_request_what_their_pool_says_or_a_little(pool: dict[str, Any], requests: dict[str, str]) -> None:
    found = parts.worker_resources(parse(good(decode=pool)), "decode", renderer.WORKER_REQUESTS)
    assert found["requests"] == requests
    before = parts.worker_resources(parse(good(decode=pool)), "decode", renderer.WORKER_REQUESTS - 1)
    assert before == {k: {n: str(v) for n, v in part.items()} for k, part in pool.get("resources", {}).items()}


def test_a_rollout_has_as_long_as_its_probes_and_the_drain_of_another_pod() -> None:
    dd = parse(good(prefill={"drain": {"timeoutSeconds": 1000}}))
    assert parts.progress_deadline_s(dd, "prefill") > 1000 + parts.STARTUP_PERIOD_S * parts.STARTUP_FAILURES


def test_a_claim_stands_for_the_accelerators_unless_it_is_for_other_devices() -> None:
    gpus: dict[str, Any] = {"accelerator": {"count": 2}, "resources": {"requests": {"cpu": "4"}}}

    def made(**claim: Any) -> tuple[Any, Any]:
        dd = parse(good(decode=gpus | ({"deviceClaim": claim} if claim else {})))
        return parts.device_claims(dd, "decode"), parts.worker_resources(dd, "decode", renderer.CURRENT)

    assert made()[0] == {}
    assert "claims" not in made()[1]
    claims, resources = made(templateName="pairs")
    assert claims == {"resourceClaims": [{"name": "devices", "resourceClaimTemplateName": "pairs"}]}
    assert resources == {"requests": {"cpu": "4", "memory": "8Gi"}, "claims": [{"name": "devices"}]}
    _, resources = made(templateName="nics", accelerators=False)
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == "2"
    assert resources["claims"] == [{"name": "devices"}]


def test_containers_of_the_operator_hear_the_signal_and_keep_their_own_hooks() -> None:
    own = {"preStop": {"httpGet": {"path": "/x"}}}

    def hooks(version: int) -> list[Any]:
        containers: list[dict[str, Any]] = [{"name": "main"}, {"name": "adapter", "lifecycle": own}, {"name": "other"}]
        parts.hear_the_signal({"spec": {"containers": containers}}, version)
        return [container.get("lifecycle") for container in containers]

    assert hooks(renderer.CURRENT) == [parts.AFTER_START, own, None]
    assert hooks(renderer.FIRST) == [None, own, None]


def test_the_end_of_the_log_is_kept() -> None:
    assert parts.last_words() == {"terminationMessagePolicy": "FallbackToLogsOnError"}
    assert parts.last_words(renderer.FIRST) == {}


def test_containers_that_a_template_adds_get_no_rights_that_they_do_not_ask_for() -> None:
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    kept: dict[str, Any] = {"runAsUser": 7, "capabilities": {"drop": ["KILL"]}}
    asking: list[Obj] = [
        {"name": "a", "securityContext": {"privileged": True}},
        {"name": "b", "securityContext": {"capabilities": {"add": ["NET_ADMIN"]}}},
        {"name": "c", "securityContext": "what the API server refuses"},
    ]
    ours: Obj = {"containers": [{"name": "main"}]}
    spec: Obj = {
        "containers": [{"name": "main"}, {"name": "logs"}, {"name": "own", "securityContext": kept}, *asking],
        "initContainers": [{"name": "early"}],
    }
    parts.confine_further(spec, ours, renderer.CONFINED_SIDECARS)
    assert spec["containers"] == [
        {"name": "main"},
        {"name": "logs", "securityContext": confined},
        {"name": "own", "securityContext": {"allowPrivilegeEscalation": False, **kept}},
        *asking,
    ]
    assert spec["initContainers"] == [{"name": "early", "securityContext": confined}]
    before: Obj = {"containers": [{"name": "logs"}]}
    parts.confine_further(before, ours, renderer.CONFINED_SIDECARS - 1)
    assert before == {"containers": [{"name": "logs"}]}
