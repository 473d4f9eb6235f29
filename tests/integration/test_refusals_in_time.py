"""How soon the operator process says what is refused, and sees that what was missing has come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, eventually, operator
from tests.integration.test_pod_failures import KNOWN_WITHIN_S

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import DEPLOYMENT, SECRET
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_DEPLOYMENT
from disagg_wire.roles import ROLES

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

# What comes or goes is seen within this time, long before the next full list.
SEEN_WITHIN_S = 60.0
_POLICIES = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies"
_BINDINGS = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings"


def _limits(memory: str) -> Obj:
    return {"spec": {"containers": [{"name": "main", "resources": {"limits": {"memory": memory}}}]}}


# Reason, field to blame, and the edit that is refused for it.
REFUSED: dict[str, tuple[str, str, Obj]] = {
    "what-cannot-be-converted": (
        "InvalidSpec", "spec.decode.podTemplate.spec.containers[main].resources.limits.memory",
        {"decode": {"podTemplate": _limits("10GB")}},
    ),
    "what-the-api-server-forbids": (
        "InvalidSpec", "spec.decode.resources.requests",
        {"decode": {"resources": {"limits": {"cpu": "1"}, "requests": {"cpu": "2"}}}},
    ),
    "what-an-admission-policy-denies": ("AdmissionDenied", "spec.router", {"router": {"replicas": 7}}),
    "what-nobody-may": (
        "NotPermitted", "spec.prefill.podTemplate.spec.hostPID",
        {"prefill": {"podTemplate": {"spec": {"hostPID": True}}}},
    ),
    "what-does-not-exist": ("ReferenceMissing", "spec.model.uri", {"model": {"uri": "pvc://absent/m"}}),
    "what-does-not-fit": (
        "Infeasible", "spec.scaling.maxGPUs",
        {role: {"accelerator": {"count": 2}} for role in ROLES} | {"scaling": {"maxGPUs": 3}},
    ),
}  # fmt: skip


async def told(cluster: Cluster, name: str, kind: str, reason: str, within_s: float) -> Obj:
    """Return a condition of the present generation once it has this reason."""

    async def there() -> Obj | None:
        found = await cluster.resource(name)
        seen: Obj = {c["type"]: c for c in found["status"]["conditions"]}[kind]
        assert seen["observedGeneration"] == found["metadata"]["generation"]
        return seen if seen["reason"] == reason else None

    found: Obj = await eventually(f"{kind} of {name} is {reason}", there, within_s)
    return found


async def made(cluster: Cluster, name: str) -> list[Any]:
    found = await cluster.kube.list(DEPLOYMENT, cluster.namespace, f"{LABEL_DEPLOYMENT}={name}")
    return [(o["metadata"]["name"], o["spec"]) for o in found]


async def deny_seven_routers(cluster: Cluster) -> None:
    """Create an admission policy, and wait until the API server obeys it."""
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["*"], "resources": ["deployments"]}
    mine = {"matchLabels": {"kubernetes.io/metadata.name": cluster.namespace}}
    spec = {
        "failurePolicy": "Fail", "matchConstraints": {"resourceRules": [rule], "namespaceSelector": mine},
        "validations": [{"expression": "object.spec.replicas != 7", "message": "no seven of anything"}],
    }  # fmt: skip
    binding = {"policyName": cluster.namespace, "validationActions": ["Deny"]}
    for path, content in ((_POLICIES, spec), (_BINDINGS, binding)):
        body = {"metadata": {"name": cluster.namespace}, "spec": content}
        await cluster.raw("POST", path, body, "application/json")
    labels = {"a": "b"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "m", "image": "x"}]}}
    probe = {"metadata": {"name": "x"}, "spec": {"replicas": 7, "selector": {"matchLabels": labels}, "template": pod}}

    async def obeyed() -> bool:
        try:
            await cluster.raw("POST", DEPLOYMENT.path(cluster.namespace), probe, "application/json", {"dryRun": "All"})
        except KubeError as error:
            return "no seven" in str(error)
        return False

    await eventually("the policy is in force", obeyed)


async def test_a_refusal_is_told_within_seconds_with_its_field_and_generation(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    await deny_seven_routers(cluster)
    try:
        async with operator(server, tmp_path, cluster.namespace):
            await cluster.apply_resource("good")
            await told(cluster, "good", "Accepted", "Valid", 30.0)
            for name, (reason, path, edit) in REFUSED.items():
                await cluster.apply_resource(name, **edit)
                refusal = await told(cluster, name, "Accepted", reason, KNOWN_WITHIN_S)
                assert (refusal["status"], refusal["message"].startswith(path)) == ("False", True), refusal
                assert await made(cluster, name) == [], "nothing of a refused new resource is written"
                # The same as an edit of what runs.
                before = await made(cluster, "good")
                await cluster.apply_resource("good", **edit)
                refusal = await told(cluster, "good", "Accepted", reason, KNOWN_WITHIN_S)
                assert (refusal["status"], path in refusal["message"]) == ("False", True), refusal
                assert await made(cluster, "good") == before
                await cluster.apply_resource("good")
                await told(cluster, "good", "Accepted", "Valid", KNOWN_WITHIN_S)
    finally:
        for path in (_BINDINGS, _POLICIES):
            await cluster.kube._call("DELETE", f"{path}/{cluster.namespace}")


async def test_what_a_resource_names_is_seen_within_seconds_when_it_comes_and_goes(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.attach_network("other")
    secret = {"metadata": {"name": "keys"}, "stringData": {"keys": "sk-0123456789abcdef"}}
    async with operator(server, tmp_path, cluster.namespace):
        keys = {"apiKeysSecretRef": {"name": "keys", "key": "keys"}}
        await cluster.apply_resource("keyed", router={"replicas": 1, **keys})
        await cluster.apply_resource("networked", kvTransfer={"network": {"attachmentRef": {"name": "late"}}})
        await told(cluster, "keyed", "Accepted", "ReferenceMissing", 30.0)
        await told(cluster, "networked", "Accepted", "NetworkAttachmentMissing", 30.0)
        await cluster.raw("POST", SECRET.path(cluster.namespace), secret, "application/json")
        await told(cluster, "keyed", "Accepted", "Valid", SEEN_WITHIN_S)
        await cluster.attach_network("late")
        await told(cluster, "networked", "Accepted", "Valid", SEEN_WITHIN_S)
        running = await made(cluster, "keyed")
        await cluster.kube._call("DELETE", SECRET.path(cluster.namespace, "keys"))
        warning = await told(cluster, "keyed", "Warning", "ReferenceMissing", SEEN_WITHIN_S)
        assert "spec.router.apiKeysSecretRef" in warning["message"]
        await told(cluster, "keyed", "Accepted", "Valid", SEEN_WITHIN_S)
        assert await made(cluster, "keyed") == running
