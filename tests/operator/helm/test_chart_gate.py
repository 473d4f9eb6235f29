"""The chart passes helm's linter, the schemas of a real API server, kube-score and more checks."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.integration.apiserver import ApiServer, program_path
from tests.operator.desired.facts import FACTS
from tests.operator.helm.check_list import SKIPPED, failures
from tests.operator.helm.score import ACCEPTED, complaints
from tests.operator.helm.test_chart import CHART, REPO, _objects

from disagg_operator.api import parse_file
from disagg_operator.desired import render

pytestmark = pytest.mark.apiserver

EVERYTHING: dict[str, Any] = {
    "images": {"operator": "registry.example/disagg/operator:1.0@sha256:" + "0" * 64},
    "imagePullSecrets": [{"name": "registry"}],
    "replicas": 3,
    "watchNamespaces": ["default"],
    "rbac": {"aggregatedRoles": True, "nodes": True},
    "runtimeUpdates": {"maxParallel": 2},
    "networkPolicy": {
        "operatorFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        "scrapers": [{"podSelector": {"matchLabels": {"app": "agent"}}}],
        "webPorts": [3128],
    },
    "nodeSelector": {"kubernetes.io/os": "linux"},
    "tolerations": [{"key": "control", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "podAnnotations": {"a": "b"},
    "priorityClassName": "system-cluster-critical",
}


def _values(folder: Path, values: dict[str, Any]) -> list[str]:
    (folder / "values.yaml").write_text(yaml.safe_dump(values))
    return ["--values", str(folder / "values.yaml")]


CASES = pytest.mark.parametrize("values", [{}, EVERYTHING, {"replicas": 1}], ids=["defaults", "everything", "one"])


@CASES
def test_helm_has_no_complaint(values: dict[str, Any], tmp_path: Path) -> None:
    command = [program_path("helm"), "lint", "--strict", str(CHART), *_values(tmp_path, values)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "[WARNING]" not in done.stdout


@CASES
def test_every_object_is_valid_for_a_real_api_server(
    crd_server: ApiServer, crd_client: httpx.Client, values: dict[str, Any], tmp_path: Path
) -> None:
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "sys"}}
    assert crd_client.post("/api/v1/namespaces", json=namespace).status_code in (201, 409)
    (tmp_path / "all.yaml").write_text(yaml.safe_dump_all(_objects(*_values(tmp_path, values))))
    done = subprocess.run(
        [program_path("kubectl"), f"--kubeconfig={crd_server.kubeconfig}", "apply", "--server-side", "--dry-run=server",
         "--validate=strict", "--field-manager=gate", "--force-conflicts", "-f", str(tmp_path / "all.yaml")],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@CASES
def test_the_objects_of_the_chart_pass_the_list_of_checks(values: dict[str, Any], tmp_path: Path) -> None:
    assert failures(_objects(*_values(tmp_path, values))) - SKIPPED.keys() == set()


@CASES
def test_kube_score_has_no_complaint_about_the_chart(values: dict[str, Any], tmp_path: Path) -> None:
    found = complaints(_objects(*_values(tmp_path, values)))
    alone = {("Deployment disagg-operator", "deployment-replicas")} if values.get("replicas") == 1 else set()
    assert found - ACCEPTED.keys() == alone


def test_kube_score_has_no_complaint_about_a_resource() -> None:
    dd = parse_file(yaml.safe_load((REPO / "examples/quickstart.yaml").read_text()))
    found = complaints([*_objects(), *render(dd, FACTS)])
    assert found == ACCEPTED.keys(), "what it finds, and what it is right to find"


def test_kube_score_finds_what_is_wrong() -> None:
    pod = {"containers": [{"name": "main", "image": "x:latest", "securityContext": {"privileged": True}}]}
    meta = {"name": "x", "namespace": "ns"}
    found = complaints([{"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod}])
    assert {check for _, check in found} >= {
        "container-resources", "container-image-tag", "container-security-context-privileged", "pod-networkpolicy",
        "container-security-context-readonlyrootfilesystem", "container-security-context-user-group-id",
    }  # fmt: skip


def test_the_objects_of_a_resource_pass_the_list_of_checks() -> None:
    dd = parse_file(yaml.safe_load((REPO / "examples/quickstart.yaml").read_text()))
    objects = render(dd, FACTS)
    assert failures(objects) - SKIPPED.keys() == set()
    assert failures([*_objects(), *objects]) == SKIPPED.keys(), "a reason that is not needed any more"


def test_the_list_of_checks_finds_what_is_wrong() -> None:
    pod: dict[str, Any] = {"containers": [{"name": "main", "image": "x:latest"}], "hostNetwork": True}
    labels = {"app": "x"}
    deployment = {
        "kind": "Deployment", "metadata": {"name": "x"},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": "y"}},
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }  # fmt: skip
    service = {"kind": "Service", "metadata": {"name": "x"}, "spec": {"selector": {"app": "y"}}}
    found = {check for _, check in failures([deployment, service])}
    assert found >= {
        "requests", "memory limit", "probes", "not root", "read-only root", "no escalation", "no capabilities",
        "seccomp", "nothing of the host", "image tag", "pull policy", "service account", "spread", "network policy",
        "budget", "selector", "service without pods",
    }  # fmt: skip


def test_the_operators_are_asked_by_their_service_and_kept_by_a_budget() -> None:
    objects = {(o["kind"], o["metadata"]["name"]): o for o in _objects()}
    labels = objects["Deployment", "disagg-operator"]["spec"]["template"]["metadata"]["labels"]
    assert objects["Service", "disagg-operator"]["spec"]["selector"].items() <= labels.items()
    pod = objects["Pod", "disagg-operator-test"]
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    assert container["args"] == ["http://disagg-operator.sys.svc:8081"]
    # The test is no operator: neither the Service nor the Deployment counts it as one.
    assert not objects["Service", "disagg-operator"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


def test_who_may_scrape_reaches_the_settings_of_the_operator(tmp_path: Path) -> None:
    found = {(o["kind"], o["metadata"]["name"]): o for o in _objects(*_values(tmp_path, EVERYTHING))}
    (container,) = found["Deployment", "disagg-operator"]["spec"]["template"]["spec"]["containers"]
    environment = {e["name"]: e.get("value", "") for e in container["env"]}
    assert json.loads(environment["DISAGG_SCRAPERS"]) == EVERYTHING["networkPolicy"]["scrapers"]
    assert json.loads(environment["DISAGG_WEB_PORTS"]) == [3128]
    ingress = found["NetworkPolicy", "disagg-operator"]["spec"]["ingress"]
    assert ingress[0]["from"] == EVERYTHING["networkPolicy"]["operatorFrom"]
