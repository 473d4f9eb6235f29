"""PURE: The problem that keeps a pod from being ready.

It is derived from what the kubelet says about the containers, from the last lines of their logs,
and from what the worker in the pod says about itself. No right to read logs is needed: with the
termination message policy `FallbackToLogsOnError` the kubelet puts the end of the log into the
status of the pod.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from disagg_operator.kube.pods import epoch_s, is_ready, pool_of
from disagg_operator.kube.resources import name_of
from disagg_operator.status.last_words import POD_SECURITY_LEVEL, cause_of, cleaned
from disagg_operator.vocabulary import Obj
from disagg_wire.problems import ENGINE_OUT_OF_MEMORY, WorkerProblem, parse_termination_message

# The field that admits images which the restricted Pod Security Standard does not.
POD_SECURITY_FIELD = "spec.engine.podSecurityLevel"
# Only by this field do pods ask for the capability to lock memory.
_RDMA_MODE_FIELD = "spec.kvTransfer.network.rdmaMode"
_LOCKS_MEMORY = "IPC_LOCK"
IMAGE_PULL, POD_CONFIG, CRASH_LOOP, CONTAINER_EXITED = "ImagePull", "PodConfig", "CrashLoop", "ContainerExited"
INSUFFICIENT_CAPACITY, PODS_REFUSED = "InsufficientCapacity", "PodsRefused"
EVICTED = "Evicted"
# The waiting reasons of a container, grouped by what the user must do about them.
_WAITING = {
    "ImagePullBackOff": IMAGE_PULL,
    "ErrImagePull": IMAGE_PULL,
    "InvalidImageName": IMAGE_PULL,
    "ErrImageNeverPull": IMAGE_PULL,
    "ImageInspectError": IMAGE_PULL,
    "RegistryUnavailable": IMAGE_PULL,
    "CreateContainerConfigError": POD_CONFIG,
    "CreateContainerError": POD_CONFIG,
    "RunContainerError": POD_CONFIG,
}
_BACK_OFF = "CrashLoopBackOff"
_OOM_KILLED = "OOMKilled"
# Problems that are less specific than others, which are reported first.
_GENERAL = (CRASH_LOOP, CONTAINER_EXITED, INSUFFICIENT_CAPACITY, PODS_REFUSED, EVICTED)
# What the kubelet says of a pod that wrote too much. A volume of the operator's is made larger by
# the same field as one of the user's.
_FULL_VOLUME = re.compile(r'EmptyDir volume "([^"]+)" exceeds')
_FIRST = (IMAGE_PULL, POD_CONFIG)
_MAX_KUBELET_CHARS = 512
# A pod turns unready a moment after the container that made it so has ended.
_UNREADY_AFTER_S = 30.0
_BASELINE, _PRIVILEGED = "Baseline", "Privileged"
# What not even the standard `baseline` allows, in the words of the API server's refusal.
_BEYOND_BASELINE = (
    "privileged",
    "host namespaces",
    "hostPath",
    "hostPort",
    "capabilities.add",
    "hostProcess",
    "procMount",
)


@dataclass(frozen=True, slots=True)
class Problem:
    """A problem that keeps pods from running."""

    reason: str
    """The reason of the condition."""
    message: str
    """A sentence that names the pod and quotes the kubelet, the log or the worker."""

    @property
    def rank(self) -> tuple[int, str]:
        """A key by which problems are sorted, worst and most specific first."""
        if self.reason in _FIRST:
            return _FIRST.index(self.reason), self.message
        if self.reason in _GENERAL:
            return len(_FIRST) + 1 + _GENERAL.index(self.reason), self.message
        return len(_FIRST), self.message


def worst_of(
    pods: Iterable[Obj],
    told: Mapping[str, WorkerProblem],
    hindered: Mapping[str, WorkerProblem] = MappingProxyType({}),
) -> Problem | None:
    """Return the worst problem among pods, with the number of pods that share its reason.

    `told` is what the workers say about themselves, by the name of their pod, and `hindered` what
    the kubelet says of pods that it cannot start.
    """
    found = (pod_problem(pod, told.get(name_of(pod)), hindered.get(name_of(pod))) for pod in pods)
    problems = sorted(filter(None, found), key=lambda p: p.rank)
    if not problems:
        return None
    same = sum(p.reason == problems[0].reason for p in problems)
    more = f" (and {same - 1} more)" if same > 1 else ""
    return Problem(problems[0].reason, problems[0].message + more)


def pod_problem(pod: Obj, told: WorkerProblem | None = None, hindered: WorkerProblem | None = None) -> Problem | None:
    """Return the problem that keeps a pod from being ready, or None.

    A pod that is ready or terminating has none.
    """
    if pod["metadata"].get("deletionTimestamp") or is_ready(pod):
        return None
    who = f"pod {name_of(pod)}"
    if (pod.get("status") or {}).get("reason") == EVICTED:
        return _evicted(who, pod)  # how its containers ended is a consequence
    stopped: list[Problem] = []
    past: list[Problem] = []
    for container in _containers(pod):
        state = container.get("state") or {}
        problem = _waiting(who, pod, container) or _ended(who, pod, container)
        if problem is not None:
            (past if state.get("running") else stopped).append(problem)
    own = [] if told is None else [Problem(told.reason, f"{who}: {cleaned(told.message)}")]
    # What a worker says of itself is of now; a container that runs again has ended before that.
    specific = [p for p in (*stopped, *own, *past) if p.reason not in _GENERAL]
    first = min(specific, key=lambda p: _FIRST.index(p.reason) if p.reason in _FIRST else len(_FIRST), default=None)
    general = next(iter((*stopped, *past)), None)
    kubelet = None if hindered is None else Problem(hindered.reason, f"{who}: {cleaned(hindered.message)}")
    return first or general or kubelet or _unschedulable(who, pod)


def refused(message: str) -> Problem:
    """Return the problem of pods that the API server rejects (quota, Pod Security, admission)."""
    words = cleaned(message) or "pods are refused by the API server"
    if "violates PodSecurity" not in message:
        return Problem(PODS_REFUSED, words)
    beyond = f'"{_BASELINE.lower()}:' in message or any(word in message for word in _BEYOND_BASELINE)
    level = _PRIVILEGED if beyond else _BASELINE
    field = _RDMA_MODE_FIELD if _LOCKS_MEMORY in message else POD_SECURITY_FIELD
    return Problem(
        POD_SECURITY_LEVEL,
        f"the pods need Pod Security {level}, which the namespace does not allow "
        f"(label pod-security.kubernetes.io/enforce; {field}): {words}",
    )


def _containers(pod: Obj) -> Iterator[Obj]:
    status = pod.get("status") or {}
    yield from status.get("initContainerStatuses") or []
    yield from status.get("containerStatuses") or []


def _evicted(who: str, pod: Obj) -> Problem:
    message = str((pod.get("status") or {}).get("message", ""))
    full = _FULL_VOLUME.search(message)
    field = "" if full is None else f" (spec.{pool_of(pod) or 'router'}.podTemplate.spec.volumes[{full[1]}])"
    return Problem(EVICTED, f"{who}: {EVICTED}: {cleaned(message, _MAX_KUBELET_CHARS)}{field}")


def _waiting(who: str, pod: Obj, container: Obj) -> Problem | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    reason = str(waiting.get("reason", ""))
    if reason not in _WAITING:
        return None
    message = str(waiting.get("message", ""))
    words = cleaned(message, _MAX_KUBELET_CHARS)
    known = cause_of(message) if _WAITING[reason] == POD_CONFIG else None
    if known is not None and known.reason == POD_SECURITY_LEVEL:
        return _needs_level(f"{who}: {reason}", words)
    field = _image_field(pod, container) if _WAITING[reason] == IMAGE_PULL else ""
    return Problem(_WAITING[reason], f"{who}: {reason}: {words}" + (f" ({field})" if field else ""))


def _image_field(pod: Obj, container: Obj) -> str:
    """Return the field that holds the image of a container, or "" for an image of the operator."""
    name, role = str(container.get("name", "")), pool_of(pod)
    if name == "main":
        return "spec.engine.image" if role else "spec.router.image"
    # The operator's own containers beside `main` are these two.
    return (
        "" if name in ("adapter", "prepare") or not role else f"spec.{role}.podTemplate.spec.containers[{name}].image"
    )


def _ended(who: str, pod: Obj, container: Obj) -> Problem | None:
    """Return the problem of a container that has ended, even if it runs again by now."""
    state = container.get("state") or {}
    backing_off = (state.get("waiting") or {}).get("reason") == _BACK_OFF
    ended = state.get("terminated") or (container.get("lastState") or {}).get("terminated")
    if not ended:
        return Problem(CRASH_LOOP, f"{who}: {_BACK_OFF}: {_kubelet(container)}") if backing_off else None
    if not backing_off and (ended.get("exitCode") in (0, None) or _long_ago(pod, state, ended)):
        return None
    head = f"{who}: {_how(container, ended, backing_off)}"
    text = str(ended.get("message") or "")
    if (own := parse_termination_message(text)) is not None:
        return Problem(own.reason, f"{head}: {cleaned(own.message)}")
    tail = cleaned(text)
    quoted = f"\nlast lines:\n{tail}" if tail else ""
    if ended.get("reason") == _OOM_KILLED:
        return Problem(ENGINE_OUT_OF_MEMORY, f"{head}: it needs more memory than its limit{quoted}")
    cause = cause_of(text)
    if cause is None:
        return Problem(CRASH_LOOP if backing_off else CONTAINER_EXITED, head + quoted)
    # A log of one line need not be quoted twice.
    rest = "" if tail == cause.line else quoted
    if cause.reason == POD_SECURITY_LEVEL:
        return _needs_level(head, cause.line + rest)
    return Problem(cause.reason, f"{head}: {cause.line}{rest}")


def _needs_level(head: str, words: str) -> Problem:
    level = f"the image does not run under Pod Security Restricted, it needs {_BASELINE}"
    return Problem(POD_SECURITY_LEVEL, f"{head}: {level} ({POD_SECURITY_FIELD}: {_BASELINE}): {words}")


def _how(container: Obj, ended: Obj, backing_off: bool) -> str:
    reason = str(ended.get("reason") or "")
    details = [reason] if reason not in ("", "Error") else []
    if backing_off:
        details.append(_BACK_OFF)
    if restarts := container.get("restartCount"):
        details.append(f"{restarts} restarts" if restarts != 1 else "1 restart")
    shown = f" ({', '.join(details)})" if details else ""
    return f"container {container.get('name', '')} exited with {ended.get('exitCode')}{shown}"


def _kubelet(container: Obj) -> str:
    waiting = (container.get("state") or {}).get("waiting") or {}
    return cleaned(str(waiting.get("message", "")), _MAX_KUBELET_CHARS)


def _long_ago(pod: Obj, state: Obj, ended: Obj) -> bool:
    """Return whether a container that runs now has ended before the pod was ready for the last
    time, so that its end is not why the pod is unready.
    """
    if not state.get("running"):
        return False
    conditions = (pod.get("status") or {}).get("conditions") or []
    ready: Obj = next((c for c in conditions if c.get("type") == "Ready"), {})
    return epoch_s(ready.get("lastTransitionTime")) - epoch_s(ended.get("finishedAt")) > _UNREADY_AFTER_S


def _unschedulable(who: str, pod: Obj) -> Problem | None:
    for condition in (pod.get("status") or {}).get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("reason") == "Unschedulable":
            return Problem(INSUFFICIENT_CAPACITY, f"{who}: Unschedulable: {condition.get('message', '')}")
    return None
