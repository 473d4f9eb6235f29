"""examples/quickstart.yaml from `kubectl apply` to its deletion, as a newcomer sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from tests.e2e import rig

import demo
from access import router_url
from disagg_operator.vocabulary import FIELD_MANAGER
from kubectl import RELEASE, SYSTEM_NAMESPACE, Cluster, conditions

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(300, func_only=True)]
NAME = demo.NAME
_OPERATOR = "app.kubernetes.io/name=disagg-operator"


@pytest.fixture(scope="module")
def chat(cluster: Cluster) -> Cluster:
    cluster.kubectl("apply", "-f", demo.example())
    rig.wait_ready(cluster, NAME, prefill=1, decode=1)
    return cluster


@pytest.fixture(scope="module")
def url(chat: Cluster) -> Iterator[str]:
    with router_url(chat, f"{NAME}-router") as found:
        yield found


def test_a_chat_is_answered_and_its_kv_went_over_the_second_network(chat: Cluster, url: str) -> None:
    http = openai.DefaultHttpxClient(trust_env=False, timeout=60.0)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, http_client=http) as client:
        answer = client.chat.completions.create(
            model=rig.MODEL, messages=[{"role": "user", "content": "What does os.path.join do?"}],
            temperature=0, max_tokens=60, extra_headers={"x-disagg-trace": "1"},
        )  # fmt: skip
        assert [m.id for m in client.models.list()] == [rig.MODEL]
    assert "path" in (answer.choices[0].message.content or "").lower()
    trace = (answer.model_extra or {})["disagg"]
    assert trace["prefill"]["pod"] in rig.pods(chat, NAME, "prefill")
    assert trace["decode"]["pod"] in rig.pods(chat, NAME, "decode")
    assert (trace["path"], trace["interface"], trace["attempts"]) == ("remote", "net1", 1)
    assert trace["kv_bytes"] > 0


def test_the_columns_tell_the_state(chat: Cluster) -> None:
    lines = chat.kubectl("get", "dd").splitlines()
    row = dict(zip(lines[0].split(), lines[1].split(), strict=True))
    found = {k: row[k] for k in ("NAME", "READY", "MODEL", "PREFILL", "DECODE")}
    assert found == {"NAME": NAME, "READY": "True", "MODEL": rig.MODEL, "PREFILL": "1/1", "DECODE": "1/1"}
    assert row["URL"] == f"http://{NAME}-router.{chat.namespace}.svc/v1"


def test_the_resource_owns_its_network(chat: Cluster) -> None:
    attachment = chat.get("net-attach-def", f"{NAME}-kv")
    (owner,) = attachment["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("DisaggDeployment", chat.get("dd", NAME)["metadata"]["uid"])
    for role in ("prefill", "decode"):
        for pod in rig.pods(chat, NAME, role).values():
            status = json.loads(pod["metadata"]["annotations"]["k8s.v1.cni.cncf.io/network-status"])
            assert {s["interface"] for s in status} >= {"net1"}


def _exec(cluster: Cluster, pod: str, code: str) -> str:
    return cluster.kubectl("exec", pod, "--", "python3", "-c", code).strip()


@pytest.mark.parametrize("component", ["prefill", "decode", "router"])
def test_pods_run_as_nobody_on_a_root_that_they_cannot_write(chat: Cluster, component: str) -> None:
    (name,) = rig.pods(chat, NAME, component)
    code = """
import os, pathlib
try:
    pathlib.Path("/app/probe").write_text("")
    writable = True
except OSError:
    writable = False
token = os.path.exists("/var/run/secrets/kubernetes.io/serviceaccount/token")
status = pathlib.Path("/proc/1/status").read_text()
caps = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
print(os.getuid(), writable, token, int(caps, 16))
"""
    # Only the router needs the API (EndpointSlices).
    assert _exec(chat, name, code) == f"65532 False {component == 'router'} 0"


def test_images_hold_nothing_that_is_not_theirs(chat: Cluster) -> None:
    code = "import importlib.util as u; print([m for m in {} if u.find_spec(m)])"
    everything = ["torch", "kopf", "kubernetes", "transformers", "disagg_operator", "disagg_worker", "disagg_router"]
    theirs = {
        "operator": ["kopf", "kubernetes", "disagg_operator"],
        "router": ["disagg_router"],
        "prefill": ["torch", "disagg_worker"],
    }
    system = Cluster(chat.environment, SYSTEM_NAMESPACE)
    found = {"operator": _exec(system, _leader(system), code.format(everything))}
    for component in ("router", "prefill"):
        (name,) = rig.pods(chat, NAME, component)
        found[component] = _exec(chat, name, code.format(everything))
    assert found == {k: str(v) for k, v in theirs.items()}


def test_the_test_of_the_chart_passes(chat: Cluster) -> None:
    out = chat.run("helm", "test", RELEASE, "-n", SYSTEM_NAMESPACE, "--timeout", "100s", timeout_s=150)
    assert "Succeeded" in out


def _leader(system: Cluster) -> str:
    """Return the pod of the operator that leads."""
    holder = system.get("lease", f"{RELEASE}-operator")["spec"]["holderIdentity"]
    return str(holder).rpartition("_")[0]


def _metric(system: Cluster, name: str) -> float:
    """Return a metric of the operator that leads."""
    path = f"/api/v1/namespaces/{SYSTEM_NAMESPACE}/pods/{_leader(system)}:8081/proxy/metrics"
    text = system.kubectl("get", "--raw", path)
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{name} "))


_KINDS = "deployments,services,disaggpools,networkpolicies,roles,net-attach-def"


def _spec_versions(cluster: Cluster) -> dict[str, Any]:
    """Return the generations and uids that change if anything relevant is written."""
    out = {f"{o['kind']}/{o['metadata']['name']}": o["metadata"].get("generation") for o in cluster.items(_KINDS)}
    return out | rig.uids(cluster, NAME)


def _written(cluster: Cluster, since: str) -> list[str]:
    """Return the objects that the operator has written since then, also if only their status."""
    text = cluster.kubectl("get", f"{_KINDS},configmaps,secrets,dd", "-o", "json", "--show-managed-fields")
    metas = [(o["kind"], o["metadata"]) for o in json.loads(text)["items"]]
    times = {
        f"{kind}/{meta['name']}": [f["time"] for f in meta.get("managedFields", ()) if f["manager"] == FIELD_MANAGER]
        for kind, meta in metas
    }
    assert sum(map(len, times.values())) > 10
    return [name for name, written in times.items() if any(time >= since for time in written)]


def test_a_restarted_operator_touches_nothing(chat: Cluster) -> None:
    system = Cluster(chat.environment, SYSTEM_NAMESPACE)
    before, ready = _spec_versions(chat), conditions(chat.get("dd", NAME))["Ready"]
    # Those of a release before, if the cluster has had one, may still be ending.
    assert len([pod for pod in system.items("pods", _OPERATOR) if "deletionTimestamp" not in pod["metadata"]]) == 2
    old = _leader(system)
    system.kubectl("delete", "pod", old, "--timeout=60s", timeout_s=90)
    system.wait("another operator leads", lambda: _leader(system) not in ("", old), 60.0)
    system.kubectl("rollout", "status", f"deployment/{RELEASE}-operator", "--timeout=60s", timeout_s=90)
    system.wait(
        "three scrapes by the new operator", lambda: _metric(system, "disagg_operator_sweep_seconds_count") >= 3, 60.0
    )
    assert _spec_versions(chat) == before
    assert conditions(chat.get("dd", NAME))["Ready"] == ready
    # The number of its calls counts what it does for other tests, too.
    since = system.get("lease", f"{RELEASE}-operator")["spec"]["acquireTime"].partition(".")[0] + "Z"
    assert _written(chat, since) == []


def _shrink_soon(cluster: Cluster, role: str) -> None:
    """Wait for less than the example does before a pool shrinks, and for nothing else."""
    pool: dict[str, Any] = cluster.get("dd", NAME)["spec"][role]
    pool["autoscaling"]["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 5
    rig.edit(cluster, NAME, **{role: pool})


def test_decode_grows_and_shrinks_by_its_queue_and_prefill_stays(chat: Cluster, url: str) -> None:
    _shrink_soon(chat, "decode")
    demo.scale(chat, url, "decode", "prefill", demo.decode_heavy, 24)


def test_prefill_grows_and_shrinks_by_its_queue_and_decode_stays(chat: Cluster, url: str) -> None:
    _shrink_soon(chat, "prefill")
    demo.scale(chat, url, "prefill", "decode", demo.prefill_heavy, 16)


def test_with_the_resource_every_child_goes(chat: Cluster) -> None:
    chat.kubectl("delete", "dd", NAME, "--timeout=30s")
    kinds = (
        "disaggpools,deployments,replicasets,pods,services,endpointslices,secrets,serviceaccounts,roles,rolebindings,"
        "networkpolicies,poddisruptionbudgets,net-attach-def"
    )

    def left() -> list[str]:
        found = chat.items(kinds, f"disagg.dev/deployment={NAME}")
        return [f"{o['kind']}/{o['metadata']['name']}" for o in found]

    chat.wait("every child is gone", lambda: not left(), 60.0, detail=lambda: str(left()))
