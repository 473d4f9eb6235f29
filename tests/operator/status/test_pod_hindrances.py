"""What keeps the kubelet from starting a pod, by its Events."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.status.pod_hindrances import hindrance, is_stuck

SCHEDULED = {"type": "PodScheduled", "status": "True"}
CREATING = {"state": {"waiting": {"reason": "ContainerCreating"}}}


def pod(role: str = "decode", networks: bool = True, **status: Any) -> dict[str, Any]:
    meta: dict[str, Any] = {"name": "p", "labels": {"disagg.dev/pool": role} if role else {}}
    if networks:
        meta["annotations"] = {"k8s.v1.cni.cncf.io/networks": "n"}
    return {"metadata": meta, "status": {"phase": "Pending", "conditions": [SCHEDULED], **status}}


def event(reason: str, message: str, at: str = "2026-01-01T00:00:01Z", kind: str = "Warning") -> dict[str, Any]:
    return {"type": kind, "reason": reason, "message": message, "lastTimestamp": at}


@pytest.mark.parametrize(
    ("found", "stuck"),
    [
        (pod(containerStatuses=[CREATING]), True),
        (pod(), True),
        (pod(initContainerStatuses=[{"state": {"waiting": {"reason": "PodInitializing"}}}]), True),
        (pod(containerStatuses=[{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]), False),
        (pod(containerStatuses=[{"state": {"running": {}}}]), False),
        (pod(phase="Running"), False),
        (pod(conditions=[]), False),
        ({"metadata": {"name": "p"}}, False),
        ({**pod(), "metadata": {"name": "p", "deletionTimestamp": "x"}}, False),
    ],
)
def test_a_pod_is_stuck_between_its_node_and_its_first_container(found: dict[str, Any], stuck: bool) -> None:
    assert is_stuck(found) is stuck


MOUNT = 'MountVolume.SetUp failed for volume "{}" : not found'


@pytest.mark.parametrize(
    ("found", "reason", "message", "expected", "field"),
    [
        (pod(), "FailedMount", MOUNT.format("extra"), "FailedMount", "spec.decode.podTemplate.spec.volumes[extra]"),
        (pod(), "FailedAttachVolume", MOUNT.format("model"), "FailedMount", "spec.model.uri"),
        (pod(), "FailedMount", "Unable to attach or mount volumes: unmounted volumes=[extra], timed out", "FailedMount",
         "spec.decode.podTemplate.spec.volumes[extra]"),
        (pod(role=""), "FailedMount", MOUNT.format("api-keys"), "FailedMount", "spec.router.apiKeysSecretRef"),
        (pod(role=""), "FailedMount", MOUNT.format("trace-ca"), "FailedMount",
         "spec.observability.tracing.caSecretRef"),
        (pod(), "FailedMount", MOUNT.format("cluster-key"), "FailedMount", ""),
        (pod(role=""), "FailedMount", MOUNT.format("extra"), "FailedMount", ""),
        (pod(), "FailedMount", "no volume is named", "FailedMount", ""),
        (pod(), "FailedCreatePodSandBox", "plugin type=multus failed: no network", "FailedAttachNetwork",
         "spec.kvTransfer.network"),
        (pod(networks=False), "FailedCreatePodSandBox", "failed to set up CNI", "FailedAttachNetwork", ""),
        (pod(), "FailedCreatePodSandBox", "context deadline exceeded", "PodSandbox", ""),
    ],
)  # fmt: skip
def test_the_words_of_the_kubelet_get_a_reason_and_the_field(
    found: dict[str, Any], reason: str, message: str, expected: str, field: str
) -> None:
    problem = hindrance(found, [event(reason, message)])
    assert problem is not None
    assert problem.reason == expected
    assert problem.message == f"{reason}: {message}" + (f" ({field})" if field else "")


def test_only_the_last_event_counts() -> None:
    early = event("FailedMount", MOUNT.format("a"))
    late = event("Pulling", "Pulling image", "2026-01-01T00:00:02Z", "Normal")
    assert hindrance(pod(), [early, late]) is None
    assert hindrance(pod(), [late, {**early, "series": {"lastObservedTime": "2026-01-01T00:00:03Z"}}]) is not None
    assert hindrance(pod(), [event("BackOff", "other")]) is None
    assert hindrance(pod(), []) is None
    assert hindrance(pod(), [{"type": "Warning", "reason": "FailedMount", "eventTime": "x"}]) is not None
