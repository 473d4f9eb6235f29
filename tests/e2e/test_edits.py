"""One resource with accelerators and an RDMA device is edited, refused, and scaled.

It is scaled by hand and by an HPA.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.e2e import rig

from kubectl import Cluster, ClusterFailed, conditions

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]
BESIDE_OTHERS = True
NAME = "sim"
GPU, RDMA, PRODUCT = "nvidia.com/gpu", "rdma/hca_shared_devices_a", "DISAGG-CPU-SIM"


@pytest.fixture(scope="module")
def sim(cluster: Cluster) -> Cluster:
    """Return the cluster with pods that hold both extended resources and move their KV over TCP."""
    obj = rig.resource(NAME, "192.168.78.0/24")
    pool = {"accelerator": {"count": 1, "product": PRODUCT}, "resources": rig.SMALL}
    obj["spec"] |= {"prefill": pool, "decode": pool}
    obj["spec"]["kvTransfer"]["transport"] = "tcp"
    obj["spec"]["kvTransfer"]["network"]["rdmaResource"] = {"name": RDMA}
    rig.apply(cluster, obj)
    rig.wait_ready(cluster, NAME, prefill=1, decode=1)
    return cluster


def _only(found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the only pod that is not terminating."""
    (pod,) = [p for p in found.values() if "deletionTimestamp" not in p["metadata"]]
    return pod


def _env(pod: dict[str, Any]) -> dict[str, str]:
    return {e["name"]: e.get("value", "") for e in pod["spec"]["containers"][0]["env"]}


@pytest.mark.parametrize("role", ["prefill", "decode"])
def test_workers_hold_an_accelerator_and_an_rdma_device(sim: Cluster, role: str) -> None:
    pod = _only(rig.pods(sim, NAME, role))
    limits = pod["spec"]["containers"][0]["resources"]["limits"]
    assert {k: limits.get(k) for k in (GPU, RDMA)} == {GPU: "1", RDMA: "1"}
    assert pod["spec"]["nodeSelector"] == {"nvidia.com/gpu.product": PRODUCT}
    node = sim.get("node", pod["spec"]["nodeName"])
    assert node["metadata"]["labels"]["nvidia.com/gpu.product"] == PRODUCT
    assert pod["status"]["phase"] == "Running"


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        ({"decode": {"replicas": -1}}, "spec.decode.replicas"),
        ({"model": {"uri": "https://example.com/model"}}, "spec.model.uri"),
        ({"kvTransfer": {"transport": "rdma", "network": {"rdmaResource": None}}}, "spec.kvTransfer.network"),
        ({"decode": {"replicas": 1, "autoscaling": {"maxReplicas": 2}}}, "spec.decode.autoscaling"),
        ({"engine": {"type": "guess"}}, "spec.engine.type"),
    ],
)
def test_the_api_server_refuses_a_bad_edit_and_names_the_field(sim: Cluster, spec: dict[str, Any], field: str) -> None:
    generation = sim.get("dd", NAME)["metadata"]["generation"]
    with pytest.raises(ClusterFailed) as refusal:
        rig.edit(sim, NAME, **spec)
    assert field in str(refusal.value)
    assert sim.get("dd", NAME)["metadata"]["generation"] == generation


def test_an_unknown_field_is_refused_by_name(sim: Cluster) -> None:
    obj = rig.resource("typo", "192.168.79.0/24", decode={"replica": 2})
    with pytest.raises(ClusterFailed, match=r'unknown field "spec\.decode\.replica"'):
        rig.apply(sim, obj)
    assert sim.get("dd", "typo") == {}


def test_what_only_the_operator_can_refuse_leaves_the_service_as_it_is(sim: Cluster) -> None:
    before = rig.uids(sim, NAME)
    rig.edit(sim, NAME, decode={"parallelism": {"tensor": 8}})
    generation = sim.get("dd", NAME)["metadata"]["generation"]

    def refused() -> bool:
        found = conditions(sim.get("dd", NAME))["Accepted"]
        return bool(found["status"] == "False" and found["observedGeneration"] == generation)

    sim.wait("the edit is refused", refused, 60.0, detail=lambda: rig.diagnosis(sim, NAME))
    found = conditions(sim.get("dd", NAME))
    assert found["Accepted"]["message"].startswith("spec.decode.parallelism.tensor: ")
    assert found["Ready"]["status"] == "False"
    assert found["Available"]["status"] == "True"
    rig.edit(sim, NAME, decode={"parallelism": {"tensor": 1}})
    rig.wait_ready(sim, NAME, prefill=1, decode=1)
    assert rig.uids(sim, NAME) == before


def test_an_edit_of_the_router_replaces_the_router_and_no_worker(sim: Cluster) -> None:
    workers = {**rig.pods(sim, NAME, "prefill"), **rig.pods(sim, NAME, "decode")}
    rig.edit(sim, NAME, router={"queue": {"maxDepth": 77}})
    rig.wait_ready(sim, NAME, prefill=1, decode=1)

    def replaced() -> bool:
        routers = [p for p in rig.pods(sim, NAME, "router").values() if "deletionTimestamp" not in p["metadata"]]
        return [_env(p).get("DISAGG_QUEUE_MAX_DEPTH") for p in routers] == ["77"]

    sim.wait("the new router is alone", replaced, 60.0, detail=lambda: rig.diagnosis(sim, NAME))
    assert {**rig.pods(sim, NAME, "prefill"), **rig.pods(sim, NAME, "decode")}.keys() == workers.keys()


def test_kubectl_scale_of_a_pool_is_kept(sim: Cluster) -> None:
    sim.kubectl("scale", f"dp/{NAME}-decode", "--replicas=2")
    found = rig.wait_ready(sim, NAME, prefill=1, decode=2)
    owners = {p["name"]: p["replicaOwner"] for p in found["status"]["pools"]}
    assert owners == {"prefill": "spec", "decode": "kubectl"}
    # An edit of another field triggers a reconcile, but the number stays.
    rig.edit(sim, NAME, security={"networkPolicy": False})
    sim.wait("the policy is gone", lambda: not sim.get("networkpolicy", f"{NAME}-workers"), 60.0)
    rig.wait_ready(sim, NAME, prefill=1, decode=2)
    assert sim.get("dp", f"{NAME}-decode")["spec"]["replicas"] == 2
    # The declared number wins when it changes: first to the number that runs, then to a lower one.
    for count in (2, 1):
        rig.edit(sim, NAME, decode={"replicas": count})
        found = rig.wait_ready(sim, NAME, prefill=1, decode=count)
        assert {p["name"]: p["replicaOwner"] for p in found["status"]["pools"]}["decode"] == "spec"


def test_an_hpa_reads_and_writes_a_pool(sim: Cluster) -> None:
    """There is no metrics server, so the pool must reach the HPA's minReplicas."""
    hpa = {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "floor"},
        "spec": {
            "scaleTargetRef": {"apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggPool", "name": f"{NAME}-prefill"},
            "minReplicas": 2,
            "maxReplicas": 3,
            "metrics": [
                {
                    "type": "Resource",
                    "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 60}},
                }
            ],
        },
    }
    rig.apply(sim, hpa)
    found = rig.wait_ready(sim, NAME, prefill=2, decode=1)
    assert {p["name"]: p["replicaOwner"] for p in found["status"]["pools"]}["prefill"] == "kube-controller-manager"

    def reads() -> bool:
        status = sim.get("hpa", "floor").get("status", {})
        able = {c["type"]: c["status"] for c in status.get("conditions", [])}.get("AbleToScale")
        return able == "True" and status.get("currentReplicas") == status.get("desiredReplicas") == 2

    sim.wait(
        "the HPA reads the scale of the pool", reads, 60.0, detail=lambda: str(sim.get("hpa", "floor").get("status"))
    )
    scale = sim.kubectl(
        "get", "--raw", f"/apis/disagg.dev/v1alpha1/namespaces/{sim.namespace}/disaggpools/{NAME}-prefill/scale"
    )
    assert '"selector":"app.kubernetes.io/component=prefill,disagg.dev/deployment=sim"' in scale
