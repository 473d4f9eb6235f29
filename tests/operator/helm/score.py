"""kube-score on the objects of an installation, and which of its complaints are right to be there.

It is built by `e2e/cluster build kube-score`.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any

import yaml
from tests.integration.apiserver import program_path

Obj = dict[str, Any]

# No limit of CPU: it would slow a process down while cores are idle. No image is always pulled: a
# registry that is away would stop every start.
_FLAGS = ("--ignore-container-cpu-limit", "--ignore-test", "container-image-pull-policy")
_GOOD = 10
_FETCHED = "what it fetches depends on the model: spec.prefill.resources and spec.decode.resources"
_SPREAD = "its pods are spread by topologySpreadConstraints"
_ANYWHERE = "the addresses of the API server, of Prometheus and of the pods that it calls are not known"
# (object, check) -> why it is right as it is.
ACCEPTED: dict[tuple[str, str], str] = {
    ("Pod disagg-operator-test", "pod-networkpolicy"): "it serves nothing",
    ("Pod disagg-operator-test", "container-ephemeral-storage-request-and-limit"): "it writes nothing",
    ("Deployment disagg-operator", "pod-networkpolicy"): _ANYWHERE,
    ("Deployment disagg-operator", "deployment-has-host-podantiaffinity"): _SPREAD,
    ("Deployment chat-prefill", "container-resources"): "what it needs depends on its model: prefill.resources",
    ("Deployment chat-decode", "container-resources"): "what it needs depends on its model: decode.resources",
    ("Deployment chat-prefill", "container-ephemeral-storage-request-and-limit"): _FETCHED,
    ("Deployment chat-decode", "container-ephemeral-storage-request-and-limit"): _FETCHED,
    ("Deployment chat-router", "container-ephemeral-storage-request-and-limit"): "it writes nothing but its log",
    ("Deployment chat-router", "pod-networkpolicy"): _ANYWHERE,
    ("Deployment chat-prefill", "deployment-replicas"): "the resource asks for one",
    ("Deployment chat-router", "deployment-replicas"): "the resource asks for one",
    ("Deployment chat-decode", "deployment-has-host-podantiaffinity"): _SPREAD,
}


def complaints(objects: list[Obj]) -> set[tuple[str, str]]:
    """Return the checks of kube-score that fail, as (object, check)."""
    command = [program_path("kube-score"), "score", "--output-format", "json", *_FLAGS, "-"]
    done = subprocess.run(
        command, input=yaml.safe_dump_all(objects), capture_output=True, text=True, timeout=60, check=False
    )
    found = set()
    for scored in json.loads(done.stdout):
        name = f"{scored['type_meta']['kind']} {scored['object_meta']['name']}"
        for check in scored["checks"]:
            if not check["skipped"] and check["grade"] < _GOOD:
                found.add((name, str(check["check"]["id"])))
    return found
