"""The controllers of other projects, as their own manifests install them: LeaderWorkerSet and KEDA.

The manifests come with the pinned Go modules that the programs are built from.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import yaml

from kubectl import REPO, Cluster

LABEL = {"disagg-e2e": "true"}
_TIMEOUT_S = 240.0
Objects = list[dict[str, Any]]


@dataclass(frozen=True)
class Controller:
    """One project's controller."""

    group: str
    """The folder in e2e/gomods."""
    module: str
    namespace: str
    images: dict[str, str]
    """The image and the program of each Deployment that is run, by its name."""
    without: tuple[str, ...] = ()
    """Objects that are left out, as KIND/NAME."""


LEADER_WORKER_SET = Controller("lws", "sigs.k8s.io/lws", "lws-system", {"lws-controller-manager": "lws"})
KEDA = Controller(
    "keda",
    "github.com/kedacore/keda/v2",
    "keda",
    {"keda-operator": "keda", "keda-metrics-apiserver": "keda-adapter"},
    ("Deployment/keda-admission", "ValidatingWebhookConfiguration/keda-admission"),
)


def manifests(cluster: Cluster, controller: Controller) -> Objects:
    """Return the objects of the project's default installation, with the images of this cluster."""
    folder = cluster.run(
        "go", "-C", REPO / "e2e/gomods" / controller.group, "list", "-m", "-f", "{{.Dir}}", controller.module
    ).strip()
    found = list(yaml.safe_load_all(cluster.run("kubectl", "kustomize", f"{folder}/config/default")))
    kept = [o for o in found if f"{o['kind']}/{o['metadata']['name']}" not in controller.without]
    for obj in kept:
        obj["metadata"].setdefault("labels", {}).update(LABEL)
        if obj["kind"] == "Deployment":
            _small(obj, controller.images[obj["metadata"]["name"]])
    return kept


def _small(deployment: dict[str, Any], image: str) -> None:
    """Run one pod of a Deployment, with a program of this cluster and few resources."""
    deployment["spec"]["replicas"] = 1
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    container |= {"image": f"disagg.dev/{image}:dev", "imagePullPolicy": "Never", "command": [f"/{image}"]}
    container["resources"] = {"requests": {"cpu": "20m", "memory": "64Mi"}}
    for probe in ("readinessProbe", "livenessProbe"):
        container[probe] |= {"initialDelaySeconds": 1, "periodSeconds": 2, "failureThreshold": 30}


@contextlib.contextmanager
def installed(cluster: Cluster, *controllers: Controller) -> Iterator[None]:
    """Run these controllers until the block ends; then nothing is left of them."""
    everything = [obj for controller in controllers for obj in manifests(cluster, controller)]
    text = yaml.safe_dump_all(everything)
    try:
        cluster.run(
            "kubectl", "apply", "--server-side", "--force-conflicts", "-f", "-", stdin=text, timeout_s=_TIMEOUT_S
        )
        for controller in controllers:
            for name in controller.images:
                available = ("--for=condition=Available", f"deployment/{name}", f"--timeout={_TIMEOUT_S:.0f}s")
                cluster.run("kubectl", "-n", controller.namespace, "wait", *available, timeout_s=_TIMEOUT_S + 10)
        yield
    finally:
        gone = ("delete", "--ignore-not-found", "--wait=true", f"--timeout={_TIMEOUT_S:.0f}s", "-f", "-")
        cluster.run("kubectl", *gone, stdin=yaml.safe_dump_all(reversed(everything)), timeout_s=_TIMEOUT_S + 10)
