"""A list of checks of Kubernetes objects that kube-score does not make, or makes otherwise.

A check is a function of a pod's spec, or of all objects of an installation. What fails one on
purpose is in SKIPPED, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

Obj = dict[str, Any]

# (object, check) -> why it is right as it is.
SKIPPED: dict[tuple[str, str], str] = {
    ("Pod disagg-operator-test", "probes"): "it runs once, and its exit status is the answer",
    ("Pod disagg-operator-test", "network policy"): "it serves nothing",
    ("Pod disagg-operator-test", "spread"): "it is a single pod",
    ("Deployment chat-prefill", "memory limit"): "what a worker needs depends on its model: prefill.resources",
    ("Deployment chat-decode", "memory limit"): "what a worker needs depends on its model: decode.resources",
}


def _containers(pod: Obj) -> list[Obj]:
    return [*pod.get("initContainers", []), *pod["containers"]]


def _contexts(pod: Obj) -> list[Obj]:
    return [{**pod.get("securityContext", {}), **c.get("securityContext", {})} for c in _containers(pod)]


def _requests(pod: Obj) -> bool:
    return all({"cpu", "memory"} <= c.get("resources", {}).get("requests", {}).keys() for c in _containers(pod))


def _memory_limit(pod: Obj) -> bool:
    return all("memory" in c.get("resources", {}).get("limits", {}) for c in _containers(pod))


def _probes(pod: Obj) -> bool:
    """Liveness and readiness differ: a process that waits for others must not be restarted."""
    return all(
        "readinessProbe" in c and "livenessProbe" in c and c["livenessProbe"] != c["readinessProbe"]
        for c in pod["containers"]
    )


POD_CHECKS: dict[str, Callable[[Obj], bool]] = {
    "requests": _requests,
    "memory limit": _memory_limit,
    "probes": _probes,
    "not root": lambda pod: all(c.get("runAsNonRoot") and c.get("runAsUser", 0) >= 10_000 for c in _contexts(pod)),
    "read-only root": lambda pod: all(c.get("readOnlyRootFilesystem") for c in _contexts(pod)),
    "no escalation": lambda pod: all(c.get("allowPrivilegeEscalation") is False for c in _contexts(pod)),
    "no capabilities": lambda pod: all(c.get("capabilities", {}).get("drop") == ["ALL"] for c in _contexts(pod)),
    "seccomp": lambda pod: all(c.get("seccompProfile", {}).get("type") == "RuntimeDefault" for c in _contexts(pod)),
    "nothing of the host": lambda pod: (
        not any(pod.get(k) for k in ("hostNetwork", "hostPID", "hostIPC"))
        and not any("hostPath" in v for v in pod.get("volumes", []))
    ),
    "image tag": lambda pod: all(
        ":" in c["image"].rpartition("/")[2] and not c["image"].endswith(":latest") for c in _containers(pod)
    ),
    "pull policy": lambda pod: all("imagePullPolicy" in c for c in _containers(pod)),
    "service account": lambda pod: bool(pod.get("serviceAccountName")),
    "spread": lambda pod: bool(pod.get("topologySpreadConstraints") or pod.get("affinity")),
    "no secrets in the environment": lambda pod: (
        not any("secretKeyRef" in e.get("valueFrom", {}) for c in _containers(pod) for e in c.get("env", []))
    ),
}


def _pods(objects: list[Obj]) -> Iterator[tuple[str, Obj, dict[str, str]]]:
    """Yield the name of each workload, the spec of its pods and their labels."""
    for obj in objects:
        name = f"{obj['kind']} {obj['metadata']['name']}"
        if obj["kind"] == "Pod":
            yield name, obj["spec"], obj["metadata"].get("labels", {})
        elif obj["kind"] == "Deployment":
            template = obj["spec"]["template"]
            yield name, template["spec"], template["metadata"]["labels"]


def _selected(labels: dict[str, str], selector: Obj) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        (e["key"] in labels) is (e["operator"] == "Exists") for e in selector.get("matchExpressions", [])
    )


def _budgets(objects: list[Obj], labels: dict[str, str]) -> list[Obj]:
    found = [o["spec"] for o in objects if o["kind"] == "PodDisruptionBudget"]
    return [spec for spec in found if _selected(labels, spec["selector"])]


def failures(objects: list[Obj]) -> set[tuple[str, str]]:
    """Return the checks that fail, as (object, check)."""
    found: set[tuple[str, str]] = set()
    policies = [o["spec"]["podSelector"] for o in objects if o["kind"] == "NetworkPolicy"]
    pods = list(_pods(objects))
    for name, pod, labels in pods:
        found |= {(name, check) for check, passes in POD_CHECKS.items() if not passes(pod)}
        if not any(_selected(labels, selector) for selector in policies):
            found.add((name, "network policy"))
    for obj in objects:
        name = f"{obj['kind']} {obj['metadata']['name']}"
        if obj["kind"] == "Deployment":
            labels = obj["spec"]["template"]["metadata"]["labels"]
            if obj["spec"].get("replicas", 1) > 1:
                budgets = _budgets(objects, labels)
                if len(budgets) != 1 or budgets[0].get("unhealthyPodEvictionPolicy") != "AlwaysAllow":
                    found.add((name, "budget"))
            if not _selected(labels, obj["spec"]["selector"]):
                found.add((name, "selector"))
        if obj["kind"] == "Service" and not any(obj["spec"]["selector"].items() <= ls.items() for _, _, ls in pods):
            found.add((name, "service without pods"))
    return found
