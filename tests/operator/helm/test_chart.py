"""Tests of the chart: its rendered objects, the checks of its values, and the operator's rights.

The rights are tested on a real API server: everything that `render` returns is applied as the
operator's service account, which must have exactly the rights it needs.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from tests.integration.apiserver import program_path
from tests.operator.api.resources import Obj
from tests.operator.desired.facts import FACTS

from disagg_operator.api import parse_file
from disagg_operator.api.namespace_policy import NamespacePolicy, Permission
from disagg_operator.desired import render
from disagg_operator.kube.resources import CONFIG_MAP, OWNED, PERSISTENT_VOLUME_CLAIM, SECRET, resource_of
from disagg_operator.settings import load
from disagg_operator.status.alerts import rule_file

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


def test_the_operators_are_two_locked_down_pods_and_share_a_lease() -> None:
    deployment = _only(_objects(), "Deployment")["spec"]
    assert deployment["replicas"] == 2
    assert deployment["strategy"]["type"] == "RollingUpdate"
    pod = deployment["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"]
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
    assert container["readinessProbe"]["httpGet"]["path"] == "/healthz"


def test_workers_let_in_the_pods_of_the_operator() -> None:
    """The NetworkPolicy of the workers selects the operator by these labels."""
    labels = _only(_objects(), "Deployment")["spec"]["template"]["metadata"]["labels"]
    dd = parse_file(yaml.safe_load((REPO / "examples/quickstart.yaml").read_text()))
    policy = next(o for o in render(dd, FACTS) if o["kind"] == "NetworkPolicy")
    scrapers = [peer["podSelector"]["matchLabels"] for peer in policy["spec"]["ingress"][0]["from"]]
    assert any(labels.items() >= wanted.items() for wanted in scrapers)


def test_the_operator_understands_its_environment() -> None:
    values = "images.worker=w:1,watchNamespaces={ml,research},watchNamespace=old,logLevel=DEBUG"
    container = _only(_objects("--set", values), "Deployment")["spec"]["template"]["spec"]["containers"][0]
    settings = load({e["name"]: e.get("value", "from the pod") for e in container["env"]})
    assert (settings.worker_image, settings.log_level) == ("w:1", "DEBUG")
    assert settings.namespaces == ("ml", "research", "old")
    assert (settings.lease_namespace, settings.lease_name) == ("sys", "disagg-operator")
    assert container["ports"][0]["containerPort"] == settings.health_port
    grace_s = _only(_objects(), "Deployment")["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    # Running reconciles and the saving of the scaling state may take the timeout each, and the
    # watches and the Lease some seconds.
    assert grace_s >= 2 * settings.shutdown_timeout_s + 15


def test_the_policy_reaches_the_operator() -> None:
    values = "policy.namespaces.ml.allow={HostPath},policy.namespaces.ml.networkAttachments={nets/*}"
    pod = _only(_objects("--set", values), "Deployment")["spec"]["template"]["spec"]
    policy = load({e["name"]: e["value"] for e in pod["containers"][0]["env"] if "value" in e}).policy
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
        ("watchNamespaces={ml,Not_A_Name}", "watchNamespaces"),
        ("watchNamespaces=ml", "watchNamespaces"),
        ("replicas=0", "replicas"),
        ("rbac.aggregatedRoles=perhaps", "aggregatedRoles"),
        ("scalerOnly=perhaps", "scalerOnly"),
        ("scaler.targets[0].resources={deployments}", "apiGroups"),
    ],
)
def test_wrong_values_are_refused_by_name(value: str, word: str) -> None:
    done = _helm("--set", value)
    assert done.returncode != 0
    assert word in done.stderr


def _is_of_decisions(rule: Obj) -> bool:
    """Return whether a rule is one of two: to read the keys of the operator, and to make them."""
    by_name = (["disagg-operator-decisions", "disagg-operator-seal"], ["get"])
    return rule["resources"] == ["secrets"] and (rule.get("resourceNames", []), rule["verbs"]) in (
        by_name,
        ([], ["create"]),
    )


def test_the_keys_of_the_operator_are_in_its_own_namespace() -> None:
    for values in ("scalerOnly=true", "watchNamespaces={ml}"):
        roles = [o for o in _objects("--set", values) for r in o.get("rules", []) if _is_of_decisions(r)]
        assert [(o["kind"], o["metadata"]["name"], o["metadata"]["namespace"]) for o in roles] == [
            ("Role", "disagg-operator-lease", "sys")
        ] * 2


@pytest.mark.parametrize("watched", ["", "watchNamespace=ml", "watchNamespaces={ml,research}"])
def test_no_right_is_a_wildcard_and_secrets_are_never_listed(watched: str) -> None:
    for obj in _objects(*(["--set", watched] if watched else [])):
        for rule in obj.get("rules", []):
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if "secrets" in rule["resources"] and not (obj["kind"] == "Role" and _is_of_decisions(rule)):
                assert set(rule["verbs"]) == {"get", "create", "patch"}


def _granted(objects: list[Obj]) -> list[Obj]:
    """Return the roles that the operator is bound to."""
    bound = {(b["roleRef"]["kind"], b["roleRef"]["name"]) for b in objects if b["kind"].endswith("Binding")}
    return [o for o in objects if (o["kind"], o["metadata"]["name"]) in bound]


@pytest.mark.parametrize(
    ("values", "namespaces"), [("watchNamespace=ml", {"ml"}), ("watchNamespaces={ml,research}", {"ml", "research"})]
)
def test_in_some_namespaces_the_operator_may_write_nowhere_else(values: str, namespaces: set[str]) -> None:
    objects = _objects("--set", values)
    for role in _granted(objects):
        if role["kind"] == "ClusterRole":
            assert all(set(rule["verbs"]) <= READING for rule in role["rules"])
    namespaced = [o for o in _granted(objects) if o["kind"] == "Role" and not o["metadata"]["name"].endswith("-lease")]
    assert {o["metadata"]["namespace"] for o in namespaced} == namespaces


def test_an_installation_may_have_no_object_outside_its_namespaces() -> None:
    values = "watchNamespaces={ml},rbac.nodes=false,rbac.aggregatedRoles=false"
    assert {o["metadata"].get("namespace") for o in _objects("--set", values)} == {"sys", "ml"}


def test_without_namespaces_the_cluster_role_is_always_there() -> None:
    roles = _granted(_objects("--set", "rbac.nodes=false"))
    assert any(o["kind"] == "ClusterRole" for o in roles)


def test_the_scaler_alone_may_create_no_pod_and_touch_no_other_kind_of_disagg() -> None:
    for values in ("scalerOnly=true", "scalerOnly=true,watchNamespaces={ml}"):
        objects = _objects("--set", f"{values},rbac.aggregatedRoles=false")
        rules = [rule for role in _granted(objects) for rule in role["rules"]]
        ours = {resource for rule in rules if rule["apiGroups"] == ["disagg.dev"] for resource in rule["resources"]}
        assert ours == {"disaggscalers", "disaggscalers/status"}
        written = {resource for rule in rules if set(rule["verbs"]) - READING for resource in rule["resources"]}
        written.remove("secrets")  # see _is_of_decisions
        assert written == {
            "disaggscalers/status", "deployments/scale", "statefulsets/scale", "leaderworkersets/scale",
            "disaggregatedsetrolescalers/scale", "configmaps", "events", "leases",
        }  # fmt: skip
        (secrets,) = [rule for rule in rules if "secrets" in rule["resources"] and not _is_of_decisions(rule)]
        assert secrets["verbs"] == ["get"]
        container = _only(objects, "Deployment")["spec"]["template"]["spec"]["containers"][0]
        assert load({e["name"]: e.get("value", "from the pod") for e in container["env"]}).scaler_only


def test_the_kinds_that_are_scaled_can_be_chosen() -> None:
    scaled = {
        resource
        for role in _granted(_objects("--set", "scaler.targets=null", "--set", "rbac.aggregatedRoles=false"))
        for rule in role["rules"]
        for resource in rule["resources"]
    }
    assert not [resource for resource in scaled if resource.endswith("/scale")]
    values = "scaler.targets[0].apiGroups={x.dev},scaler.targets[0].resources={graphs}"
    rules = [rule for role in _granted(_objects("--set", values)) for rule in role["rules"]]
    assert {"apiGroups": ["x.dev"], "resources": ["graphs/scale"], "verbs": ["get", "patch"]} in rules


def test_rules_for_prometheus_are_there_where_their_kind_is_known_and_they_are_wanted() -> None:
    wanted = ("--set", "monitoring.rules.enabled=true")
    more = (
        "--set",
        "monitoring.rules.labels.release=kps",
        "--set",
        "monitoring.rules.runbookBase=https://example.com/r/",
    )
    known = ("--api-versions", "monitoring.coreos.com/v1")
    for arguments in ((), wanted, known):
        assert "PrometheusRule" not in {o["kind"] for o in _objects(*arguments)}
    rule = _only(_objects(*wanted, *known), "PrometheusRule")
    assert rule["spec"] == {"groups": rule_file.groups()}
    linked = _only(_objects(*wanted, *known, *more), "PrometheusRule")
    assert linked["metadata"]["labels"]["release"] == "kps"
    links = [r["annotations"]["runbook_url"] for g in linked["spec"]["groups"] for r in g["rules"] if "alert" in r]
    assert all(link.startswith("https://example.com/r/Disagg") for link in links)


def _apply(client: httpx.Client, obj: Obj, user: str | None, path: str) -> httpx.Response:
    headers = {"Content-Type": "application/apply-patch+yaml"} | ({"Impersonate-User": user} if user else {})
    params = {"fieldManager": "disagg-operator", "force": "true", "fieldValidation": "Strict"}
    return client.patch(path, params=params, content=json.dumps(obj), headers=headers)


@pytest.fixture(scope="module")
def operator_user(multus_client: httpx.Client) -> str:
    """Return the user name of the operator's service account.

    The rights that the chart grants are in force in namespace `serving` only.
    """
    for name in ("sys", "serving"):
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        assert multus_client.post("/api/v1/namespaces", json=namespace).status_code in (201, 409)
    objects = _objects("--set", "watchNamespace=serving")
    for obj in objects:
        if "helm.sh/hook" in obj["metadata"].get("annotations", {}):
            continue  # an installation does not create it
        if obj["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            path = f"/apis/rbac.authorization.k8s.io/v1/{obj['kind'].lower()}s/{obj['metadata']['name']}"
        else:
            path = resource_of(obj).path(obj["metadata"]["namespace"], obj["metadata"]["name"])
        answer = _apply(multus_client, obj, None, path)
        assert answer.status_code in (200, 201), answer.text
    account = _only(objects, "ServiceAccount")["metadata"]
    return f"system:serviceaccount:{account['namespace']}:{account['name']}"


def _as(client: httpx.Client, user: str, verb: str, resource: str, subresource: str = "") -> bool:
    """Return whether a user may do something with a resource of disagg in namespace `serving`."""
    attributes = {"group": "disagg.dev", "resource": resource, "verb": verb, "namespace": "serving"}
    spec = {"user": user, "resourceAttributes": attributes | {"subresource": subresource}}
    review = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    answer = client.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", json=review)
    return bool(answer.json()["status"]["allowed"])


@pytest.mark.parametrize(("role", "writes"), [("admin", True), ("edit", True), ("view", False)])
def test_admins_and_editors_of_a_namespace_manage_resources_and_viewers_read_them(
    crd_client: httpx.Client, operator_user: str, role: str, writes: bool
) -> None:
    """Roles are chosen as the controller does, by the selectors of the role of Kubernetes."""
    rbac = "/apis/rbac.authorization.k8s.io/v1"
    selectors = crd_client.get(f"{rbac}/clusterroles/{role}").json()["aggregationRule"]["clusterRoleSelectors"]
    ours = [
        o["metadata"]["name"]
        for o in _objects()
        if o["kind"] == "ClusterRole"
        for s in selectors
        if s["matchLabels"].items() <= o["metadata"]["labels"].items()
    ]
    for name in ours:
        binding = {
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": f"{role}-{name}", "namespace": "serving"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": f"some-{role}"}],
        }  # fmt: skip
        path = f"{rbac}/namespaces/serving/rolebindings/{role}-{name}"
        assert _apply(crd_client, binding, None, path).status_code in (200, 201)
    user = f"some-{role}"
    # The API server's own list of bindings is a moment late.
    deadline_s = time.monotonic() + 30
    verbs = ("list", "create") if writes else ("list",)
    while not all(_as(crd_client, user, verb, "disaggdeployments") for verb in verbs):
        assert time.monotonic() < deadline_s, f"{ours} are bound, and grant nothing"
        time.sleep(0.05)
    assert _as(crd_client, user, "create", "disaggdeployments") is writes
    assert _as(crd_client, user, "patch", "disaggpools", "scale") is writes
    # A pool is the operator's own object.
    assert not _as(crd_client, user, "patch", "disaggpools")
    assert not _as(crd_client, user, "patch", "disaggdeployments", "status")
    assert _as(crd_client, user, "list", "disaggdeployments")


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
