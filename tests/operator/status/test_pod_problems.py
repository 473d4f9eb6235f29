"""Tests of the problem that is named for a pod which is not ready."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.status.pod_problems import Problem, pod_problem, refused, worst_of
from disagg_wire.labels import LABEL_POOL
from disagg_wire.problems import WorkerProblem

UNKNOWN_VERSION = WorkerProblem("UnknownEngineVersion", "vllm 9.9 is not in the adapter's table")


def container(
    name: str = "main", restarts: int = 0, last: dict[str, Any] | None = None, **state: Any
) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "restartCount": restarts, "state": state}
    return found if last is None else {**found, "lastState": {"terminated": last}}


def ended(message: str = "", code: int | None = 1, reason: str = "Error", at: str = "2026-01-01T00:01:00Z") -> Any:
    return {"exitCode": code, "reason": reason, "message": message, "finishedAt": at}


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def pod(*containers: dict[str, Any], init: tuple[dict[str, Any], ...] = (), unready: str = "", **meta: Any) -> Any:
    ready = {"type": "Ready", "status": "False", "lastTransitionTime": unready or "2026-01-01T00:00:00Z"}
    status = {"conditions": [ready], "containerStatuses": list(containers), "initContainerStatuses": list(init)}
    return {"metadata": {"name": "p", **meta}, "status": status}


BACK_OFF = waiting("CrashLoopBackOff", "back-off 10s")
RUNNING: dict[str, Any] = {"running": {"startedAt": "2026-01-01T00:01:01Z"}}
IN_USE = "starting\nOSError: [Errno 98] Address already in use"


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        pytest.param(pod(container(**waiting("ImagePullBackOff", "no such image"))), "ImagePull", id="image"),
        pytest.param(pod(container(**waiting("CreateContainerConfigError", "no secret"))), "PodConfig", id="config"),
        pytest.param(
            pod(container(**waiting("CreateContainerConfigError", "runAsNonRoot and image will run as root"))),
            "PodSecurityLevel", id="an image of root",
        ),
        pytest.param(pod(container(**waiting("ContainerCreating"))), None, id="it is being created"),
        pytest.param(pod(container(**BACK_OFF)), "CrashLoop", id="a loop of which nothing is known"),
        pytest.param(pod(container(**BACK_OFF, last=ended("boom"))), "CrashLoop", id="a loop of unknown cause"),
        pytest.param(pod(container(**BACK_OFF, last=ended(code=0))), "CrashLoop", id="a loop of good ends"),
        pytest.param(pod(container(**BACK_OFF, last=ended(IN_USE))), "PortInUse", id="a loop of known cause"),
        pytest.param(pod(container(terminated=ended(IN_USE))), "PortInUse", id="the first end"),
        pytest.param(pod(container(terminated=ended("boom"))), "ContainerExited", id="the first end of unknown cause"),
        pytest.param(pod(container(terminated=ended("boom", code=0))), None, id="a good end"),
        pytest.param(pod(container(terminated=ended(code=None))), None, id="an end without a code"),
        pytest.param(pod(container(**RUNNING, last=ended(IN_USE))), "PortInUse", id="it runs again, and is not ready"),
        pytest.param(
            pod(container(**RUNNING, last=ended(IN_USE)), unready="2026-01-01T00:01:03Z"), "PortInUse",
            id="its end made the pod unready",
        ),
        pytest.param(
            pod(container(**RUNNING, last=ended(IN_USE)), unready="2026-01-01T09:00:00Z"), None,
            id="the pod was ready since that end",
        ),
        pytest.param(
            pod(container(**RUNNING, last=ended(IN_USE, at="soon"))), "PortInUse", id="an end at an unknown time"
        ),
        pytest.param(
            pod(container(**RUNNING), init=(container("fetch", terminated=ended("Permission denied")),)),
            "PodSecurityLevel", id="an init container",
        ),
        pytest.param(
            pod(container(**RUNNING), init=(container("fetch", last=ended("x"), terminated=ended(code=0)),)), None,
            id="an init container that has come through",
        ),
        pytest.param(
            pod(container(**BACK_OFF, last=ended(code=137, reason="OOMKilled"))), "EngineOutOfMemory", id="memory"
        ),
        pytest.param(
            pod(container("adapter", **BACK_OFF, last=ended(UNKNOWN_VERSION.termination_message()))),
            "UnknownEngineVersion", id="the adapter's last word",
        ),
        pytest.param(
            pod(container("adapter", **BACK_OFF, last=ended("x")), container(**waiting("ErrImagePull"))), "ImagePull",
            id="the image comes first",
        ),
        pytest.param(
            pod(container("adapter", **BACK_OFF, last=ended("x")), container(**BACK_OFF, last=ended(IN_USE))),
            "PortInUse", id="the known cause comes first",
        ),
        pytest.param(pod(container(**BACK_OFF), deletionTimestamp="now"), None, id="it is on its way out"),
        pytest.param({"metadata": {"name": "p"}}, None, id="it has no status yet"),
    ],
)  # fmt: skip
def test_what_keeps_a_pod_from_being_ready_is_named(found: dict[str, Any], reason: str | None) -> None:
    problem = pod_problem(found)
    assert (problem.reason if problem else None) == reason


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        pytest.param(pod(container(**RUNNING)), "UnknownEngineVersion", id="all containers run"),
        pytest.param(pod(container(**RUNNING, last=ended(IN_USE))), "UnknownEngineVersion", id="an end is in the past"),
        pytest.param(pod(container(**BACK_OFF, last=ended(IN_USE))), "PortInUse", id="the container stands still"),
        pytest.param(
            pod(container(**BACK_OFF, last=ended("x"))), "UnknownEngineVersion", id="it does, for no known cause"
        ),
    ],
)
def test_a_worker_speaks_for_itself(found: dict[str, Any], reason: str) -> None:
    problem = pod_problem(found, UNKNOWN_VERSION)
    assert problem is not None
    assert problem.reason == reason


def test_a_pod_that_is_ready_has_no_problem_whatever_was() -> None:
    found = pod(container(**RUNNING, restarts=3, last=ended(IN_USE)))
    found["status"]["conditions"] = [{"type": "Ready", "status": "True"}]
    assert pod_problem(found, UNKNOWN_VERSION) is None


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            pod(container(**BACK_OFF, restarts=2, last=ended(IN_USE))),
            "pod p: container main exited with 1 (CrashLoopBackOff, 2 restarts): OSError: [Errno 98] Address "
            "already in use\nlast lines:\nstarting\nOSError: [Errno 98] Address already in use",
        ),
        (
            pod(container(**BACK_OFF, restarts=1, last=ended("MemoryError", 137, "OOMKilled"))),
            "pod p: container main exited with 137 (OOMKilled, CrashLoopBackOff, 1 restart): it needs more memory "
            "than its limit\nlast lines:\nMemoryError",
        ),
        (pod(container(terminated=ended("MemoryError"))), "pod p: container main exited with 1: MemoryError"),
        (pod(container(**BACK_OFF)), "pod p: CrashLoopBackOff: back-off 10s"),
        (pod(container(terminated=ended(reason="", code=139))), "pod p: container main exited with 139"),
        (
            pod(container(terminated=ended("Permission denied"))),
            "pod p: container main exited with 1: the image does not run under Pod Security Restricted, it needs "
            "Baseline (spec.engine.podSecurityLevel: Baseline): Permission denied",
        ),
        (
            pod(container("adapter", terminated=ended(UNKNOWN_VERSION.termination_message()))),
            "pod p: container adapter exited with 1: vllm 9.9 is not in the adapter's table",
        ),
    ],
)  # fmt: skip
def test_the_message_names_the_cause_first_and_ends_with_the_log(found: dict[str, Any], message: str) -> None:
    problem = pod_problem(found)
    assert problem is not None
    assert problem.message == message


def test_a_pod_that_wrote_too_much_names_the_field_of_its_volume() -> None:
    """However its containers have ended; those of a pod that does not start yet come first."""
    full = pod(container(terminated=ended(IN_USE)))
    full["metadata"]["labels"] = {LABEL_POOL: "decode"}
    words = 'Usage of EmptyDir volume "cache" exceeds the limit "96Gi". '
    full["status"] |= {"phase": "Failed", "reason": "Evicted", "message": words}
    field = "spec.decode.podTemplate.spec.volumes[cache]"
    assert pod_problem(full) == Problem("Evicted", f"pod p: Evicted: {words.strip()} ({field})")
    assert worst_of([full, pod(container(**BACK_OFF))], {}) == pod_problem(pod(container(**BACK_OFF)))
    del full["metadata"]["labels"]
    assert "(spec.router.podTemplate.spec.volumes[cache])" in (pod_problem(full) or Problem("", "")).message
    full["status"]["message"] = "The node was low on resource: memory."
    assert (pod_problem(full) or Problem("", "")).message.endswith("memory.")


def test_a_pod_without_a_node_is_named_and_one_with_a_node_is_not() -> None:
    conditions = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
    found = {"metadata": {"name": "p"}, "status": {"conditions": conditions}}
    assert pod_problem(found) == Problem("InsufficientCapacity", "pod p: Unschedulable: 0/3 nodes")
    conditions[0] = {"type": "PodScheduled", "status": "True"}
    assert pod_problem(found) is None


def test_the_worst_of_the_pods_speaks_and_counts_its_like() -> None:
    loop, port = container(**BACK_OFF, last=ended("x")), container(**BACK_OFF, last=ended(IN_USE))
    pods = [pod(loop, name="a"), pod(port, name="c"), pod(port, name="b"), pod(container(**RUNNING), name="d")]
    worst = worst_of(pods, {})
    assert worst is not None
    assert (worst.reason, worst.message.startswith("pod b"), worst.message.endswith("(and 1 more)")) == (
        "PortInUse",
        True,
        True,
    )
    pulled = worst_of([*pods, pod(container(**waiting("ErrImagePull")))], {})
    assert pulled is not None
    assert pulled.reason == "ImagePull"
    told = worst_of(pods[3:], {"d": UNKNOWN_VERSION, "e": UNKNOWN_VERSION})
    assert told == Problem("UnknownEngineVersion", "pod d: vllm 9.9 is not in the adapter's table")
    assert worst_of([], {}) is None


@pytest.mark.parametrize(
    ("message", "reason", "words"),
    [
        ("exceeded quota", "PodsRefused", "exceeded quota"),
        ("", "PodsRefused", "pods are refused by the API server"),
        (
            'violates PodSecurity "restricted:latest": runAsUser=0 (pod must not set runAsUser=0)',
            "PodSecurityLevel",
            "the pods need Pod Security Baseline",
        ),
        (
            'violates PodSecurity "restricted:latest": unrestricted capabilities (container "main" must not include '
            '"IPC_LOCK" in securityContext.capabilities.add)',
            "PodSecurityLevel",
            "the pods need Pod Security Privileged",
        ),
        (
            'violates PodSecurity "baseline:latest": seLinuxOptions (type "x")',
            "PodSecurityLevel",
            "the pods need Pod Security Privileged",
        ),
    ],
)
def test_pods_that_the_api_server_refuses_need_a_level(message: str, reason: str, words: str) -> None:
    problem = refused(message)
    assert problem.reason == reason
    if reason == "PodSecurityLevel":
        field = "spec.kvTransfer.network.rdmaMode" if "IPC_LOCK" in message else "spec.engine.podSecurityLevel"
        assert field in problem.message
    assert words in problem.message
