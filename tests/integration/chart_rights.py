"""The rights that the chart grants to the operator, granted to the limited user instead."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import AsyncIterator

import yaml
from tests.integration.apiserver import LIMITED_USER, REPO, program_path
from tests.integration.operator_process import Cluster

from disagg_operator.vocabulary import Obj

_RBAC = "rbac.authorization.k8s.io"


def _rendered(namespace: str, values: tuple[str, ...]) -> list[Obj]:
    command = [program_path("helm"), "template", "disagg", str(REPO / "helm/disagg"), "--kube-version", "1.37.0"]
    command += ["--namespace", namespace, *(word for value in values for word in ("--set", value))]
    chart = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [doc for doc in yaml.safe_load_all(chart.stdout) if doc]


def _path(obj: Obj) -> str:
    namespace = obj["metadata"].get("namespace")
    middle = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{_RBAC}/v1{middle}/{obj['kind'].lower()}s/{obj['metadata']['name']}"


@contextlib.asynccontextmanager
async def chart_rights(cluster: Cluster, *values: str) -> AsyncIterator[None]:
    """Grant them for as long as the block runs, as if the chart were installed with `values`."""
    bindings = []
    for obj in _rendered(cluster.namespace, values):
        if obj["apiVersion"] != f"{_RBAC}/v1":
            continue
        if obj["kind"].endswith("Binding"):
            obj = {**obj, "subjects": [{"apiGroup": _RBAC, "kind": "User", "name": LIMITED_USER}]}
            bindings.append(obj)
        params = {"fieldManager": "test", "force": "true"}
        await cluster.raw("PATCH", _path(obj), obj, "application/apply-patch+yaml", params)
    try:
        yield
    finally:
        for binding in bindings:
            await cluster.kube._call("DELETE", _path(binding))
