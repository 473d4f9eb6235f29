"""Tests of the chart: its rendered objects, the checks of its values, and the operator's rights.

The rights are tested on a real API server: everything that `render` returns is applied as the
operator's service account, which must have exactly the rights it needs.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.integration.apiserver import program_path
from tests.operator.api.resources import Obj
from tests.operator.desired.facts import FACTS

from disagg_operator.api import parse_file
from disagg_operator.desired import render
from disagg_operator.kube.resources import CONFIG_MAP, OWNED, PERSISTENT_VOLUME_CLAIM, SECRET, resource_of
from disagg_operator.policy import NamespacePolicy, Permission
from disagg_operator.settings import load

pytestmark = pytest.mark.apiserver

REPO = Path(__file__).resolve().parents[3]
CHART = REPO / "helm/disagg"
READING = {"get", "list", "watch"}


def _helm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        program_path("helm"),
        "template",
        "disagg",
        str(CHART),
        "--namespace",
        "sys",
        "--kube-version",
        "1.37.0",
        *arguments,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _objects(*arguments: str) -> list[Obj]:
    done = _helm(*arguments)
    assert done.returncode == 0, done.stderr
    return [o for o in yaml.safe_load_all(done.stdout) if o]


def _only(objects: list[Obj], kind: str) -> Obj:
    (found,) = [o for o in objects if o["kind"] == kind]
    return found


def test_the_operator_is_one_locked_down_pod_that_is_never_two() -> None:
    deployment = _only(_objects(), "Deployment")["spec"]
    assert (deployment["replicas"], deployment["strategy"]) == (1, {"type": "Recreate"})
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["livenessProbe"]["httpGet"]["path"] == "/healthz"


def test_workers_let_in_the_pods_of_the_operator() -> None:
    """The NetworkPolicy of the workers selects the operator by these labels."""
    labels = _only(_objects(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    dd = parse_file(yaml.safe_load((REPO / "examples/quickstart.yaml").read_text()))
    policy = next(o for o in render(dd, FACTS) if o["kind"] == "NetworkPolicy")
    scrapers = [peer["podSelector"]["matchLabels"] for peer in policy["spec"]["ingress"][0]["from"]]
    assert any(labels.items() >= wanted.items() for wanted in scrapers)


def test_the_operator_understands_its_environment() -> None:
    container = _only(_objects("--set", "images.worker=w:1,watchNamespace=ml,logLevel=DEBUG"), "Deployment")["spec"][
        "template"
    ]["spec"]
    settings = load({e["name"]: e["value"] for e in container["containers"][0]["env"]})
    assert (settings.worker_image, settings.watch_namespace, settings.log_level) == ("w:1", "ml", "DEBUG")
    assert container["containers"][0]["ports"][0]["containerPort"] == settings.health_port


def test_the_policy_reaches_the_operator() -> None:
    values = "policy.namespaces.ml.allow={HostPath},policy.namespaces.ml.networkAttachments={nets/*}"
    pod = _only(_objects("--set", values), "Deployment")["spec"]["template"]["spec"]
    policy = load({e["name"]: e["value"] for e in pod["containers"][0]["env"]}).policy
    assert policy.of("ml").allow == (Permission.HOST_PATH,)
    assert policy.of("ml").allows_attachment("nets", "fabric")
    assert policy.of("other") == NamespacePolicy()


def test_the_chart_knows_every_permission() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())["properties"]["policy"]["properties"]["namespaces"]
    assert schema["additionalProperties"]["properties"]["allow"]["items"]["enum"] == [*Permission]


@pytest.mark.parametrize(
    ("value", "word"),
    [
        ("imagse.worker=x", "imagse"),
        ("images.pullPolicy=Sometimes", "pullPolicy"),
        ("images.worker=", "worker"),
        ("logLevel=TRACE", "logLevel"),
        ("policy.namespaces.ml.allow={Root}", "allow"),
        ("policy.namespaces.ML.images={a}", "ML"),
        ("policy.namespaces.ml.networkAttachments={fast}", "networkAttachments"),
        ("watchNamespace=Not_A_Name", "watchNamespace"),
    ],
)
def test_wrong_values_are_refused_by_name(value: str, word: str) -> None:
    done = _helm("--set", value)
    assert done.returncode != 0
    assert word in done.stderr


@pytest.mark.parametrize("watch_namespace", ["", "ml"])
def test_no_right_is_a_wildcard_and_secrets_are_never_listed(watch_namespace: str) -> None:
    for obj in _objects("--set", f"watchNamespace={watch_namespace}"):
        for rule in obj.get("rules", []):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if "secrets" in rule["resources"]:
                assert set(rule["verbs"]) == {"get", "create", "patch"}


def test_in_one_namespace_the_operator_may_write_nowhere_else() -> None:
    objects = _objects("--set", "watchNamespace=ml")
    for rule in _only(objects, "ClusterRole")["rules"]:
        assert set(rule["verbs"]) <= READING
    assert {o["metadata"]["namespace"] for o in objects if o["kind"] in ("Role", "RoleBinding")} == {"ml"}


def _apply(client: httpx.Client, obj: Obj, user: str | None, path: str) -> httpx.Response:
    headers = {"Content-Type": "application/apply-patch+yaml"} | ({"Impersonate-User": user} if user else {})
    params = {"fieldManager": "disagg-operator", "force": "true", "fieldValidation": "Strict"}
    return client.patch(path, params=params, content=json.dumps(obj), headers=headers)


@pytest.fixture(scope="module")
def operator_user(crd_client: httpx.Client) -> str:
    """Return the user name of the operator's service account.

    The rights that the chart grants are in force in namespace `serving` only.
    """
    for name in ("sys", "serving"):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        assert crd_client.post("/api/v1/namespaces", json=namespace).status_code in (201, 409)
    nad = {
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "network-attachment-definitions.k8s.cni.cncf.io"},
        "spec": {
            "group": "k8s.cni.cncf.io", "scope": "Namespaced",
            "names": {
                "plural": "network-attachment-definitions", "singular": "network-attachment-definition",
                "kind": "NetworkAttachmentDefinition",
            },
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": {"openAPIV3Schema": {
                "type": "object",
                "properties": {"spec": {"type": "object", "properties": {"config": {"type": "string"}}}},
            }}}],
        },
    }  # fmt: skip
    assert crd_client.post("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", json=nad).status_code in (
        201,
        409,
    )
    objects = _objects("--set", "watchNamespace=serving")
    for obj in objects:
        if obj["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            path = f"/apis/rbac.authorization.k8s.io/v1/{obj['kind'].lower()}s/{obj['metadata']['name']}"
        else:
            path = resource_of(obj).path(obj["metadata"]["namespace"], obj["metadata"]["name"])
        answer = _apply(crd_client, obj, None, path)
        assert answer.status_code in (200, 201), answer.text
    account = _only(objects, "ServiceAccount")["metadata"]
    return f"system:serviceaccount:{account['namespace']}:{account['name']}"


@pytest.mark.parametrize("example", ["quickstart", "llama-70b", "llama-8b", "pvc"])
def test_all_that_is_rendered_is_valid_and_the_operator_may_apply_it(
    crd_client: httpx.Client, operator_user: str, example: str
) -> None:
    resource: Obj = yaml.safe_load((REPO / "examples" / f"{example}.yaml").read_text())
    resource["metadata"] |= {"namespace": "serving", "name": f"t-{example}"}
    created = crd_client.post("/apis/disagg.dev/v1alpha1/namespaces/serving/disaggdeployments", json=resource)
    assert created.status_code == 201, created.text
    facts = dataclasses.replace(FACTS, uid=created.json()["metadata"]["uid"])
    for obj in render(parse_file(resource), facts):
        path = resource_of(obj).path("serving", obj["metadata"]["name"])
        answer = _apply(crd_client, obj, operator_user, path)
        assert answer.status_code == 201, f"{obj['kind']}: {answer.text}"
        kept = answer.json()
        assert _within(obj.get("spec", {}), kept.get("spec", {})), f"{obj['kind']} is kept as it was rendered"


def test_the_operator_may_list_what_it_prunes_and_nothing_of_other_namespaces(
    crd_client: httpx.Client, operator_user: str
) -> None:
    headers = {"Impersonate-User": operator_user}
    for resource in OWNED:
        if resource.kind == "Secret":
            continue
        assert crd_client.get(resource.path("serving"), headers=headers).status_code == 200, resource.kind
        assert crd_client.get(resource.path("default"), headers=headers).status_code == 403, resource.kind
    assert crd_client.get("/api/v1/namespaces/serving/secrets", headers=headers).status_code == 403


def test_the_operator_may_read_a_secret_and_a_config_map_that_a_resource_names_and_those_of_its_namespaces_only(
    crd_client: httpx.Client, operator_user: str
) -> None:
    headers = {"Impersonate-User": operator_user}
    for resource in (SECRET, CONFIG_MAP, PERSISTENT_VOLUME_CLAIM):
        named = crd_client.get(resource.path("serving", "prom"), headers=headers)
        assert named.status_code == 404, resource.kind  # not 403
        assert crd_client.get(resource.path("default", "prom"), headers=headers).status_code == 403, resource.kind
        assert crd_client.get(resource.path("serving"), headers=headers).status_code == 403, resource.kind


def _within(wanted: Any, kept: Any) -> bool:
    """Return whether all that was applied is in the object that the API server stores.

    The server adds defaults to it, and may drop empty maps and lists.
    """
    if isinstance(wanted, dict):
        return isinstance(kept, dict) and all(_within(v, kept.get(k)) or v in ({}, []) for k, v in wanted.items())
    if isinstance(wanted, list):
        return isinstance(kept, list) and len(kept) == len(wanted) and all(map(_within, wanted, kept))
    return bool(wanted == kept)
