"""Tests of the objects rendered from a resource: against golden files, and by property."""

from __future__ import annotations

import dataclasses
import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
from tests.operator.api.resources import Obj, good
from tests.operator.desired.facts import FACTS, POOL_UIDS, UID
from tests.operator.desired.golden import EXAMPLES, REPO, example, golden_files

from disagg_operator.api import parse
from disagg_operator.desired import Facts, Images, NetworkAccess, render, renderer


def _by_name(objects: list[Obj]) -> dict[tuple[str, str], Obj]:
    found = {(o["kind"], o["metadata"]["name"]): o for o in objects}
    assert len(found) == len(objects), "two objects of one name"
    return found


def _objects(facts: Facts = FACTS, **spec: Any) -> dict[tuple[str, str], Obj]:
    return _by_name(render(parse(good(**spec)), facts))


def _worker(objects: dict[tuple[str, str], Obj], role: str) -> Obj:
    pod: Obj = objects["Deployment", f"chat-{role}"]["spec"]["template"]["spec"]
    return next(c for c in pod["containers"] if c["name"] == "main")


def _revision(role: str, **spec: Any) -> str:
    return str(_objects(**spec)["Deployment", f"chat-{role}"]["metadata"]["labels"]["disagg.dev/revision"])


@pytest.mark.parametrize(("path", "text"), [pytest.param(*item, id=item[0].stem) for item in golden_files().items()])
def test_an_example_renders_as_its_golden_file(path: Path, text: str) -> None:
    """`make generate` rewrites the golden files; the diff must then be reviewed."""
    assert text == path.read_text()


def test_the_quickstart_fits_on_a_screen() -> None:
    assert len((REPO / "examples/quickstart.yaml").read_text().splitlines()) <= 20


@pytest.mark.parametrize("name", EXAMPLES)
def test_rendering_twice_gives_the_same_and_changes_nothing_it_was_given(name: str) -> None:
    dd = example(name)
    before = dd.model_dump_json()
    assert json.dumps(render(dd, FACTS)) == json.dumps(render(dd, FACTS))
    assert dd.model_dump_json() == before


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_object_has_one_controlling_owner_and_the_labels_to_be_found_by(name: str) -> None:
    for obj in render(example(name), FACTS):
        (owner,) = obj["metadata"]["ownerReferences"]
        assert owner["controller"]
        assert owner["uid"] in {UID, *POOL_UIDS.values()}
        labels = obj["metadata"]["labels"]
        assert labels["disagg.dev/deployment"] == "chat"
        assert labels["app.kubernetes.io/managed-by"] == "disagg-operator"
        assert obj["metadata"]["namespace"] == "default"


@pytest.mark.parametrize("name", EXAMPLES)
def test_what_a_pod_needs_comes_before_the_pod(name: str) -> None:
    kinds = [o["kind"] for o in render(example(name), FACTS)]
    first_deployment = kinds.index("Deployment")
    for kind in ("Secret", "ServiceAccount", "Role", "RoleBinding", "NetworkPolicy", "DisaggPool"):
        assert kinds.index(kind) < first_deployment
    if "NetworkAttachmentDefinition" in kinds:
        assert kinds.index("NetworkAttachmentDefinition") < first_deployment


def test_a_pools_children_wait_until_the_pool_exists() -> None:
    objects = _objects(dataclasses.replace(FACTS, pool_uids={"prefill": POOL_UIDS["prefill"]}))
    assert ("DisaggPool", "chat-decode") in objects
    assert ("Deployment", "chat-prefill") in objects
    assert ("Deployment", "chat-decode") not in objects


def test_the_cluster_key_is_written_once_and_never_again() -> None:
    assert ("Secret", "chat-cluster-key") in _objects()
    assert ("Secret", "chat-cluster-key") not in _objects(dataclasses.replace(FACTS, cluster_key=None))


def test_the_replicas_are_those_that_the_facts_say() -> None:
    objects = _objects(dataclasses.replace(FACTS, replicas={"prefill": 0, "decode": 7}, declared={"decode": "2"}))
    assert objects["DisaggPool", "chat-decode"]["spec"]["replicas"] == 7
    assert objects["Deployment", "chat-decode"]["spec"]["replicas"] == 7
    assert objects["Deployment", "chat-prefill"]["spec"]["replicas"] == 0
    assert objects["DisaggPool", "chat-decode"]["metadata"]["annotations"] == {"disagg.dev/declared-replicas": "2"}


def test_without_a_network_attachment_api_none_is_rendered() -> None:
    network = {"attachment": {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}}
    key = ("NetworkAttachmentDefinition", "chat-kv")
    assert key in _objects(kvTransfer={"network": network})
    assert key not in _objects(dataclasses.replace(FACTS, attachments_available=False), kvTransfer={"network": network})


@pytest.mark.parametrize(
    ("attachment", "expected"),
    [
        (
            {"type": "macvlan", "master": "eth1", "mtu": 9000, "subnet": "10.9.0.0/24"},
            {"type": "macvlan", "mode": "bridge", "master": "eth1", "mtu": 9000},
        ),
        ({"type": "ipvlan", "master": "eth1", "subnet": "10.9.0.0/24"}, {"type": "ipvlan", "master": "eth1"}),
        ({"type": "host-device", "master": "ib0", "subnet": "10.9.0.0/24"}, {"type": "host-device", "device": "ib0"}),
        (
            {"type": "sriov", "resourceName": "x/vf", "ipam": {"type": "whereabouts", "range": "10.9.0.0/24"}},
            {"type": "sriov"},
        ),
        ({"type": "ib-sriov", "resourceName": "x/vf", "subnet": "10.9.0.0/24"}, {"type": "ib-sriov"}),
    ],
    ids=lambda value: value["type"],
)
def test_an_attachment_becomes_the_configuration_of_its_cni_plugin(attachment: Obj, expected: Obj) -> None:
    objects = _objects(kvTransfer={"network": {"attachment": attachment}})
    nad = objects["NetworkAttachmentDefinition", "chat-kv"]
    ipam = attachment.get("ipam") or {"type": "host-local", "ranges": [[{"subnet": "10.9.0.0/24"}]]}
    assert json.loads(nad["spec"]["config"]) == {"cniVersion": "0.3.1", "name": "chat-kv", "ipam": ipam, **expected}
    resource = attachment.get("resourceName")
    assert nad["metadata"].get("annotations") == ({"k8s.v1.cni.cncf.io/resourceName": resource} if resource else None)
    limits = _worker(objects, "decode")["resources"].get("limits", {})
    assert limits == ({resource: "1"} if resource else {})


def test_the_workers_policy_lets_in_routers_and_peers_only() -> None:
    policy = _objects()["NetworkPolicy", "chat-workers"]["spec"]
    http, kv = policy["ingress"]
    assert http["from"][0]["podSelector"]["matchLabels"] == {
        "app.kubernetes.io/component": "router",
        "disagg.dev/deployment": "chat",
    }
    assert [p["port"] for p in http["ports"]] == [8000]
    assert [p["port"] for p in kv["ports"]] == [9000]
    assert all("namespaceSelector" not in peer for peer in kv["from"])
    assert _objects(security={"networkPolicy": False}).get(("NetworkPolicy", "chat-workers")) is None


@pytest.mark.parametrize(("uri", "web"), [("file:///models/m", False), ("pvc://claim/m", False), ("hf://org/m", True)])
def test_workers_reach_the_web_only_to_fetch_a_model_from_there(uri: str, web: bool) -> None:
    egress = _objects(model={"uri": uri})["NetworkPolicy", "chat-workers"]["spec"]["egress"]
    assert any(p["port"] == 443 for rule in egress for p in rule["ports"]) is web


def test_the_web_has_no_metadata_services() -> None:
    [web] = [r for r in _objects(model={"uri": "hf://org/m"})["NetworkPolicy", "chat-workers"]["spec"]["egress"]
             if any(p["port"] == 443 for p in r["ports"])]  # fmt: skip
    blocks = {peer["ipBlock"]["cidr"]: peer["ipBlock"]["except"] for peer in web["to"] if "ipBlock" in peer}
    assert blocks.keys() == {"0.0.0.0/0", "::/0"}
    for cidr, excepted in blocks.items():
        version = ipaddress.ip_network(cidr).version
        assert all(ipaddress.ip_network(e).version == version for e in excepted)
        for address in ("169.254.169.254", "fd00:ec2::254", "fd20:ce::254"):
            inside = [e for e in excepted if ipaddress.ip_address(address) in ipaddress.ip_network(e)]
            assert bool(inside) is (ipaddress.ip_address(address).version == version)


def test_routers_may_read_the_slices_of_their_namespace_and_nothing_else() -> None:
    objects = _objects()
    rules = objects["Role", "chat-router"]["rules"]
    assert rules == [
        {"apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]}
    ]
    assert objects["ServiceAccount", "chat-worker"]["automountServiceAccountToken"] is False


def test_revisions_follow_the_pods_of_their_pool_and_nothing_else() -> None:
    prefill, decode = _revision("prefill"), _revision("decode")
    assert prefill != decode
    unmoved: list[Obj] = [
        {"router": {"replicas": 5}}, {"decode": {"replicas": 9}}, {"security": {"networkPolicy": False}},
        {"engine": {"dtype": "auto"}},
        {"decode": {"autoscaling": {"maxReplicas": 5}}}, {"observability": {"prometheus": {"url": "http://p:9090"}}},
    ]  # fmt: skip
    assert {_revision("decode", **spec) for spec in unmoved} == {decode}
    moved: list[Obj] = [
        {"engine": {"dtype": "float32"}}, {"decode": {"kvCacheSize": "1Gi"}},
        {"model": {"uri": "file:///models/other"}},
        {"decode": {"podTemplate": {"metadata": {"annotations": {"a": "b"}}}}},
    ]  # fmt: skip
    assert len({_revision("decode", **spec) for spec in moved} - {decode}) == len(moved)
    assert _revision("prefill", decode={"kvCacheSize": "1Gi"}) == prefill


def test_a_revision_is_in_the_pods_labels_and_environment() -> None:
    objects = _objects()
    labels = objects["Deployment", "chat-decode"]["spec"]["template"]["metadata"]["labels"]
    env = {e["name"]: e.get("value") for e in _worker(objects, "decode")["env"]}
    assert labels["disagg.dev/revision"] == env["DISAGG_REVISION"] == _revision("decode")


def test_capacity_never_falls_during_a_rollout() -> None:
    for (kind, _), obj in _objects().items():
        if kind == "Deployment":
            assert obj["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}


@pytest.mark.parametrize("name", ["chat-prefill", "chat-decode", "chat-router"])
def test_selectors_find_the_pods_they_mean(name: str) -> None:
    objects = _objects()
    labels = objects["Deployment", name]["spec"]["template"]["metadata"]["labels"].items()
    assert objects["Deployment", name]["spec"]["selector"]["matchLabels"].items() <= labels
    assert objects["Service", name]["spec"]["selector"].items() <= labels
    assert objects["PodDisruptionBudget", name]["spec"]["selector"]["matchLabels"].items() <= labels


def test_the_longest_name_leaves_room_for_every_child() -> None:
    for obj in render(parse(good("a" * 51)), FACTS):
        assert len(obj["metadata"]["name"]) <= 63


def test_the_routers_policy_opens_the_port_of_the_api_alone() -> None:
    policy = _objects()["NetworkPolicy", "chat-router"]["spec"]
    assert policy["ingress"] == [{"ports": [{"protocol": "TCP", "port": 8080}]}]
    assert policy["policyTypes"] == ["Ingress"]
    assert ("NetworkPolicy", "chat-router") not in _objects(security={"networkPolicy": False})


def test_scrapers_and_the_ports_of_a_proxy_are_those_of_the_cluster() -> None:
    agent = {"podSelector": {"matchLabels": {"app": "agent"}}}
    found = _objects(dataclasses.replace(FACTS, access=NetworkAccess([agent], [3128])), model={"uri": "hf://org/m"})
    policy = found["NetworkPolicy", "chat-workers"]["spec"]
    peers = policy["ingress"][0]["from"]
    assert agent in peers
    assert not any("prometheus" in json.dumps(peer) for peer in peers)
    assert any("disagg-operator" in json.dumps(peer) for peer in peers)
    assert [p["port"] for p in policy["egress"][-1]["ports"]] == [3128]


def test_pods_that_are_not_ready_do_not_hold_up_a_drain_of_their_node() -> None:
    for (kind, _), obj in _objects().items():
        if kind == "PodDisruptionBudget":
            assert obj["spec"]["unhealthyPodEvictionPolicy"] == "AlwaysAllow"


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_kubelet_keeps_the_last_words_of_every_container(name: str) -> None:
    for deployment in (o for o in render(example(name), FACTS) if o["kind"] == "Deployment"):
        pod = deployment["spec"]["template"]["spec"]
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError", container["name"]


@pytest.mark.parametrize("name", EXAMPLES)
def test_no_container_gets_its_signal_before_it_can_hear_it(name: str) -> None:
    for deployment in (o for o in render(example(name), FACTS) if o["kind"] == "Deployment"):
        for container in deployment["spec"]["template"]["spec"]["containers"]:
            assert list(container["lifecycle"]["preStop"]) in (["sleep"], ["httpGet"]), container["name"]


@pytest.mark.parametrize(
    ("hooks", "expected"),
    [
        ({"preStop": {"exec": {"command": ["true"]}}}, {"preStop": {"exec": {"command": ["true"]}}}),
        (
            {"postStart": {"exec": {"command": ["true"]}}},
            {"postStart": {"exec": {"command": ["true"]}}, "preStop": {"sleep": {"seconds": 1}}},
        ),
    ],
)
def test_a_hook_of_the_podtemplate_takes_the_place_of_the_pause(hooks: Obj, expected: Obj) -> None:
    template = {"spec": {"containers": [{"name": "main", "lifecycle": hooks}]}}
    assert _worker(_objects(decode={"podTemplate": template}), "decode")["lifecycle"] == expected


def test_an_earlier_renderer_knows_none_of_the_later_steps() -> None:
    found = _objects(dataclasses.replace(FACTS, images=Images(renderer=renderer.FIRST)))
    assert ("NetworkPolicy", "chat-router") not in found
    assert "unhealthyPodEvictionPolicy" not in found["PodDisruptionBudget", "chat-decode"]["spec"]
    assert found["Deployment", "chat-decode"]["spec"]["progressDeadlineSeconds"] == 1800


def test_the_pins_are_an_annotation_of_each_pool() -> None:
    found = _objects(dataclasses.replace(FACTS, runtime="pins", declared={"decode": "2"}))
    marks = {role: found["DisaggPool", f"chat-{role}"]["metadata"]["annotations"] for role in ("prefill", "decode")}
    assert marks["prefill"] == {"disagg.dev/runtime": "pins"}
    assert marks["decode"] == {"disagg.dev/runtime": "pins", "disagg.dev/declared-replicas": "2"}
