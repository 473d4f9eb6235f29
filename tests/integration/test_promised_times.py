"""How soon refusals and failures are told, what has come is seen, and another operator takes over.

These are the promises of the project, with their limits in seconds. They need an idle machine
(`make test-times`); that these things happen at all is tested with every change.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, eventually, operator
from tests.integration.stopwatch import NEVER_S, Stopwatch
from tests.integration.test_leader_election import edit, holder, leading, shown, shows, two_operators
from tests.integration.test_own_children import EDITS, RESTING, content, one_of
from tests.integration.test_pod_failures import BACK_OFF, LOG, container, ended, rig
from tests.integration.test_refusals_in_time import REFUSED, deny_seven_routers, made, told
from tests.integration.webhook_server import Webhook

from disagg_operator.kube import resources
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import (
    DEPLOYMENT,
    NETWORK_ATTACHMENT,
    PERSISTENT_VOLUME_CLAIM,
    SECRET,
    Resource,
    name_of,
    uid_of,
)
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.long]

TOLD_S, SEEN_S, FAILOVER_S, REPAIRED_S = 5.0, 10.0, 20.0, 5.0
# What may be neither listed nor watched is read in turn.
READ_IN_TURN_S = 10.0
_JSON, _MERGE = "application/json", "application/merge-patch+json"
_TEMPLATE = "spec.decode.podTemplate.spec"
Record = Callable[[str, object], None]
Row = tuple[str, str, Obj]


def _pod(**spec: Any) -> Obj:
    return {"decode": {"podTemplate": {"spec": spec}}}


def _keys(name: str) -> Obj:
    return {"router": {"replicas": 1, "apiKeysSecretRef": {"name": name, "key": "keys"}}}


def _network(name: str) -> Obj:
    return {"kvTransfer": {"network": {"attachmentRef": {"name": name}}}}


# Reason, field to blame, and the edit that is refused for it.
MORE: dict[str, Row] = {
    "no-quantity": (
        "InvalidSpec", f"{_TEMPLATE}.containers[main].resources.requests.cpu",
        _pod(containers=[{"name": "main", "resources": {"requests": {"cpu": "lots"}}}]),
    ),
    "an-unknown-field": ("InvalidSpec", f"{_TEMPLATE}.nodeSelectr", _pod(nodeSelectr={"a": "b"})),
    "a-wrong-type": ("InvalidSpec", f"{_TEMPLATE}.tolerations", _pod(tolerations="x")),
    "no-secret": ("ReferenceMissing", "spec.router.apiKeysSecretRef", _keys("absent")),
    "no-priority-class": ("ReferenceMissing", f"{_TEMPLATE}.priorityClassName", _pod(priorityClassName="absent")),
    "no-runtime-class": ("ReferenceMissing", f"{_TEMPLATE}.runtimeClassName", _pod(runtimeClassName="absent")),
    "no-network": ("NetworkAttachmentMissing", "spec.kvTransfer.network", _network("absent")),
}  # fmt: skip


async def refused(cluster: Cluster, watch: Stopwatch, name: str, row: Row) -> None:
    """Time the refusal of a new resource, and that of an edit of one that runs."""
    reason, path, spec = row
    with watch.within(TOLD_S, f"{name.replace('-', ' ')}, a new resource"):
        await cluster.apply_resource(name, **spec)
        found = await told(cluster, name, "Accepted", reason, NEVER_S)
    assert (found["status"], path in found["message"]) == ("False", True), found
    assert await made(cluster, name) == []
    before = await made(cluster, "good")
    with watch.within(TOLD_S, f"{name.replace('-', ' ')}, an edit"):
        await cluster.apply_resource("good", **spec)
        found = await told(cluster, "good", "Accepted", reason, NEVER_S)
    assert path in found["message"], found
    assert await made(cluster, "good") == before
    with watch.within(TOLD_S, f"{name.replace('-', ' ')}, the edit is taken back"):
        await cluster.apply_resource("good")
        await told(cluster, "good", "Accepted", "Valid", NEVER_S)


async def test_a_refusal_is_told_within_5_s(
    server: ApiServer, cluster: Cluster, tmp_path: Path, record_property: Record
) -> None:
    watch, webhook = Stopwatch(record_property), Webhook(cluster.kube, cluster.namespace, tmp_path)

    def deny(obj: Obj, _: bool) -> Obj | None:
        no = obj.get("spec", {}).get("replicas") == 9
        return {"code": 403, "message": "nine is too many"} if no else None

    webhook.deny = deny
    await cluster.attach_network("other")
    await deny_seven_routers(cluster)
    async with (
        webhook.listening(), webhook.configured(), operator(server, tmp_path, cluster.namespace, **RESTING),
    ):  # fmt: skip
        await cluster.apply_resource("good")
        await told(cluster, "good", "Accepted", "Valid", NEVER_S)
        asked = webhook.asked
        await eventually("the webhook is asked", lambda: _asked(cluster, webhook, asked))
        denied = ("AdmissionDenied", "spec.router", {"router": {"replicas": 9}})
        for name, row in (REFUSED | MORE | {"what-a-webhook-denies": denied}).items():
            await refused(cluster, watch, name, row)
    watch.check()


async def _asked(cluster: Cluster, webhook: Webhook, before: int) -> bool:
    labels = {"a": "b"}
    pod = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "m", "image": "x"}]}}
    probe = {"metadata": {"name": "x"}, "spec": {"selector": {"matchLabels": labels}, "template": pod}}
    await cluster.raw("POST", DEPLOYMENT.path(cluster.namespace), probe, _JSON, {"dryRun": "All"})
    return webhook.asked > before


async def test_a_quota_is_told_within_5_s(
    server: ApiServer, cluster: Cluster, tmp_path: Path, record_property: Record
) -> None:
    watch, path = Stopwatch(record_property), f"/api/v1/namespaces/{cluster.namespace}/resourcequotas"
    hard = {"services": "1"}
    await cluster.raw("POST", path, {"metadata": {"name": "q"}, "spec": {"hard": hard}}, _JSON)
    used = {"status": {"hard": hard, "used": hard}}  # as the controller writes it
    await cluster.raw("PATCH", f"{path}/q/status", used, _MERGE)
    probe = {"metadata": {"generateName": "s"}, "spec": {"ports": [{"port": 1}]}}

    async def in_force() -> bool:
        services = resources.SERVICE.path(cluster.namespace)
        with pytest.raises(KubeError, match="exceeded"):
            await cluster.raw("POST", services, probe, _JSON, {"dryRun": "All"})
        return True

    await eventually("the quota is in force", in_force)
    async with operator(server, tmp_path, cluster.namespace, **RESTING):
        with watch.within(TOLD_S, "a quota"):
            await cluster.apply_resource()
            found = await told(cluster, "chat", "Accepted", "QuotaExceeded", NEVER_S)
        assert "spec.prefill" in found["message"]
        assert await made(cluster, "chat") == []
        with watch.within(SEEN_S, "more quota"):
            await cluster.raw("PATCH", f"{path}/q", {"spec": {"hard": {"services": "9"}}}, _MERGE)
            used = {"status": {"hard": {"services": "9"}, "used": hard}}
            await cluster.raw("PATCH", f"{path}/q/status", used, _MERGE)
            await told(cluster, "chat", "Accepted", "Valid", NEVER_S)
    watch.check()


def _status(state: Obj, last: Obj | None = None) -> Obj:
    return {"phase": "Running", "containerStatuses": [container(state, last, 3)]}


def _waiting(reason: str, message: str) -> Obj:
    return {"waiting": {"reason": reason, "message": message}}


_NO_NODE = {
    "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU",
}  # fmt: skip
# The reason, words of the message, the status of the pod and an Event about it.
PODS: dict[str, tuple[str, str, Obj, tuple[str, str] | None]] = {
    "an image that is not there": ("ImagePull", "no tag", _status(_waiting("ImagePullBackOff", "no tag")), None),
    "a crash loop with its last lines": ("PortInUse", LOG, _status(BACK_OFF, ended(LOG)), None),
    "a crash loop of unknown cause": ("CrashLoop", "boom", _status(BACK_OFF, ended("boom")), None),
    "an image of root": (
        "PodSecurityLevel", "podSecurityLevel",
        _status(_waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")), None,
    ),
    "no node": (
        "InsufficientCapacity", "no GPU", {"phase": "Pending", "containerStatuses": [], "conditions": [_NO_NODE]}, None,
    ),
    "a full volume": (
        "Evicted", "volumes[cache]",
        {"phase": "Failed", "reason": "Evicted", "message": 'Usage of EmptyDir volume "cache" exceeds the limit'},
        None,
    ),
    "a volume that cannot be mounted": (
        "FailedMount", "volumes[extra]", _status(_waiting("ContainerCreating", "")) | {"phase": "Pending"},
        ("FailedMount", 'MountVolume.SetUp failed for volume "extra" : secret "x" not found'),
    ),
    "a network that cannot be attached": (
        "FailedAttachNetwork", "no IP addresses", _status(_waiting("ContainerCreating", "")) | {"phase": "Pending"},
        ("FailedCreatePodSandBox", 'plugin type="multus" failed (add): no IP addresses'),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", PODS)
async def test_what_the_kubelet_and_the_scheduler_say_is_told_within_5_s(
    server: ApiServer, cluster: Cluster, tmp_path: Path, record_property: Record, what: str
) -> None:
    watch, (reason, words, status, event) = Stopwatch(record_property), PODS[what]
    async with operator(server, tmp_path, cluster.namespace, **RESTING):
        pods = await rig(cluster)
        with watch.within(TOLD_S, what):
            await pods.write(**status)
            if event is not None:
                await pods.event(*event)
            found = await pods.reasons(("DecodeReady", reason), ("Ready", reason), within_s=NEVER_S)
        assert words in found["DecodeReady"]["message"]
    watch.check()


async def test_what_the_controller_of_deployments_says_is_told_within_5_s(
    server: ApiServer, cluster: Cluster, tmp_path: Path, record_property: Record
) -> None:
    watch, head = Stopwatch(record_property), 'pods "chat-decode-x" is forbidden: '
    security = 'violates PodSecurity "restricted:latest": runAsNonRoot != true'
    async with operator(server, tmp_path, cluster.namespace, **RESTING):
        await rig(cluster)
        path = DEPLOYMENT.path(cluster.namespace, "chat-decode") + "/status"
        for what, reason, words in (
            ("Pod Security", "PodSecurityLevel", head + security),
            ("a quota for pods", "PodsRefused", f"{head}exceeded quota: q, requested: pods=1"),
        ):
            failure = {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": words}
            with watch.within(TOLD_S, what):
                await cluster.raw("PATCH", path, {"status": {"conditions": [failure]}}, _MERGE)
                found = await told(cluster, "chat", "DecodeReady", reason, NEVER_S)
            assert words in found["message"]
    watch.check()


_CLAIM = {"spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}}
_CLASSES = "/apis/scheduling.k8s.io/v1/priorityclasses"
_RUNTIMES = "/apis/node.k8s.io/v1/runtimeclasses"


async def test_what_a_resource_names_is_seen_within_10_s(
    server: ApiServer, cluster: Cluster, tmp_path: Path, record_property: Record
) -> None:
    watch, own = Stopwatch(record_property), f"c-{cluster.namespace[-8:]}"
    await cluster.attach_network("other")
    places: dict[str, tuple[str, Obj, Obj]] = {
        "secret": (SECRET.path(cluster.namespace), _keys(own), {"stringData": {"keys": "sk-0123456789abcdef"}}),
        "claim": (PERSISTENT_VOLUME_CLAIM.path(cluster.namespace), {"model": {"uri": f"pvc://{own}/m"}}, _CLAIM),
        "network": (
            NETWORK_ATTACHMENT.path(cluster.namespace), _network(own),
            {"apiVersion": NETWORK_ATTACHMENT.api_version, "kind": NETWORK_ATTACHMENT.kind, "spec": {"config": "{}"}},
        ),
        "priority-class": (_CLASSES, _pod(priorityClassName=own), {"value": 5}),
        "runtime-class": (_RUNTIMES, _pod(runtimeClassName=own), {"handler": "runc"}),
    }  # fmt: skip
    async with operator(server, tmp_path, cluster.namespace, **RESTING):
        for name, (path, spec, more) in places.items():
            reason = "NetworkAttachmentMissing" if name == "network" else "ReferenceMissing"
            await cluster.apply_resource(name, **spec)
            await told(cluster, name, "Accepted", reason, NEVER_S)
            with watch.within(SEEN_S, f"a {name.replace('-', ' ')} comes"):
                await cluster.raw("POST", path, {"metadata": {"name": own}, **more}, _JSON)
                await told(cluster, name, "Accepted", "Valid", NEVER_S)
            with watch.within(SEEN_S, f"a {name.replace('-', ' ')} goes"):
                await cluster.kube._call("DELETE", f"{path}/{own}")
                if name == "claim":  # which the controllers protect until no pod uses it
                    await cluster.raw("PATCH", f"{path}/{own}", {"metadata": {"finalizers": None}}, _MERGE)
                await told(cluster, name, "Warning", reason, NEVER_S)
    watch.check()


async def test_own_objects_are_back_within_5_s(
    server: ApiServer, cluster: Cluster, tmp_path: Path, record_property: Record
) -> None:
    watch = Stopwatch(record_property)
    await cluster.attach_network("any")
    attachment = {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}
    async with operator(server, tmp_path, cluster.namespace, **RESTING):
        await cluster.apply_resource(kvTransfer={"network": {"attachment": attachment}})
        await told(cluster, "chat", "Accepted", "Valid", NEVER_S)
        before = {kind: await eventually(f"a {kind.kind}", partial(one_of, cluster, kind)) for kind in EDITS}
        in_turn = (resources.SECRET, resources.CONFIG_MAP, resources.NETWORK_ATTACHMENT)
        # A pool comes last: nobody here collects what the deleted one has owned.
        for kind, obj in sorted(before.items(), key=lambda item: item[0] is resources.DISAGG_POOL):
            limit_s = READ_IN_TURN_S if kind in in_turn else REPAIRED_S
            with watch.within(limit_s, f"{kind.kind} is deleted"):
                await cluster.kube.delete(await _now(cluster, kind, obj))
                await eventually(f"{kind.kind} is back", partial(_back, cluster, kind, obj), NEVER_S)
            if (change := EDITS[kind]) is None:
                continue
            wanted = content(await _now(cluster, kind, obj))
            with watch.within(limit_s, f"{kind.kind} is edited"):
                await cluster.raw("PATCH", kind.path(cluster.namespace, name_of(obj)), change, _MERGE)
                await eventually(f"{kind.kind} is restored", partial(_is, cluster, kind, obj, wanted), NEVER_S)
    watch.check()


async def _now(cluster: Cluster, kind: Resource, obj: Obj) -> Obj:
    found = await cluster.kube.get(kind, cluster.namespace, name_of(obj))
    assert found is not None
    return found


async def _back(cluster: Cluster, kind: Resource, obj: Obj) -> bool:
    return uid_of(await _now(cluster, kind, obj)) != uid_of(obj)


async def _is(cluster: Cluster, kind: Resource, obj: Obj, wanted: Any) -> bool:
    return bool(content(await _now(cluster, kind, obj)) == wanted)


@pytest.mark.parametrize("attempt", range(3))
async def test_another_operator_works_within_20_s_of_the_death_of_the_leader(
    server: ApiServer, cluster: Cluster, tmp_path: Path, record_property: Record, attempt: int
) -> None:
    watch = Stopwatch(record_property)
    async with two_operators((server, server), cluster, tmp_path, **RESTING) as (first, second):
        await edit(cluster, "chat", "one")
        await shown(cluster, "chat", "one")
        with watch.within(FAILOVER_S, "from the kill to an edit that is carried out"):
            first.process.kill()
            await edit(cluster, "chat", "two")
            await eventually("it is carried out", lambda: shows(cluster, "chat", "two"), NEVER_S)
        assert (await holder(cluster)).startswith("operator-2_")
        async with contextlib.AsyncExitStack() as stack:
            settings = RESTING | {"DISAGG_LEASE_NAMESPACE": cluster.namespace, "DISAGG_POD_NAME": "operator-3"}
            third = await stack.enter_async_context(operator(server, tmp_path, cluster.namespace, **settings))
            with watch.within(TOLD_S, "from the end of a leader that is stopped to the next one"):
                assert await second.stop() == 0
                await eventually("the next one leads", lambda: leading(third), NEVER_S)
    watch.check()
