"""A DisaggScaler and KEDA scale the same LeaderWorkerSets under the same burst, in turn.

The controller of LeaderWorkerSets and KEDA are the real ones. The engines are simulated: they take
the time that a model would take, and their metrics have vLLM's names.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.e2e import rig
from tests.e2e.front import ROLES, Front, Outcome, Phase, drawn
from tests.e2e.images import engine_simulator as engine

from kubectl import REPO, Cluster
from other_controllers import KEDA, LEADER_WORKER_SET, installed

pytestmark = [pytest.mark.e2e, pytest.mark.long, pytest.mark.timeout(2400, func_only=True)]
_BUILD_TIMEOUT_S = 45 * 60
TTFT_S, TPOT_S = 1.5, 0.06
MOST, COLD_START_S = 6, 15.0
GROUP, VERSION, KIND = "leaderworkerset.x-k8s.io", "leaderworkerset.x-k8s.io/v1", "LeaderWorkerSet"
# Quiet, a burst of long prompts, quiet, a burst of long answers, and quiet.
BURST = (
    Phase(45, 1.5, 1.5, 1000, 100),
    Phase(60, 1.5, 8, 1000, 100),
    Phase(60, 8, 8, 1000, 100),
    Phase(45, 1.5, 1.5, 1000, 100),
    Phase(60, 1.5, 5, 500, 300),
    Phase(60, 5, 5, 500, 300),
    Phase(45, 1.5, 1.5, 1000, 100),
)
# Requests that wait or run in each replica: the work of half a second for prefill, and for decode
# most of what keeps the objective.
KEDA_TARGETS = {"prefill": "2", "decode": "24"}


def leader_worker_set(role: str) -> dict[str, Any]:
    """Return a LeaderWorkerSet of engines on one node each."""
    restricted = {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    container = {
        "name": "engine",
        "image": "disagg.dev/adapter:dev",
        "imagePullPolicy": "Never",
        "command": ["tini", "--", "python3", "/simulator/engine_simulator.py"],
        "env": [{"name": "ROLE", "value": role}, {"name": "COLD_START_S", "value": str(COLD_START_S)}],
        "ports": [{"containerPort": 8000, "name": "http"}],
        "readinessProbe": {"httpGet": {"path": "/health", "port": 8000}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "10m", "memory": "48Mi"}},
        "securityContext": restricted,
        "volumeMounts": [{"name": "simulator", "mountPath": "/simulator"}],
        # The front has a look at the pods once in a second.
        "lifecycle": {"preStop": {"sleep": {"seconds": 3}}},
    }
    spec = {
        "terminationGracePeriodSeconds": 90,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
        "volumes": [{"name": "simulator", "configMap": {"name": "simulator"}}],
    }
    template = {"metadata": {"labels": {"app": f"sim-{role}"}}, "spec": spec}
    return {
        "apiVersion": VERSION,
        "kind": KIND,
        "metadata": {"name": f"sim-{role}"},
        "spec": {"replicas": 1, "leaderWorkerTemplate": {"size": 1, "workerTemplate": template}},
    }


@pytest.fixture(scope="module")
def others(whole_cluster: Cluster) -> Iterator[None]:
    for command in ("autoscalers", "monitoring"):
        subprocess.run([REPO / "e2e/cluster", command], check=True, timeout=_BUILD_TIMEOUT_S)
    with installed(whole_cluster, LEADER_WORKER_SET, KEDA):
        yield


@pytest.fixture(scope="module")
def prometheus(whole_cluster: Cluster) -> Iterator[str]:
    """Run a Prometheus that scrapes the engines every 2 s, and yield its URL."""
    job = {
        "job_name": "engines",
        "scrape_interval": "2s",
        "scrape_timeout": "2s",
        "kubernetes_sd_configs": [{"role": "pod"}],
        "relabel_configs": [
            {"source_labels": ["__meta_kubernetes_pod_label_app"], "regex": "sim-.*", "action": "keep"},
            {"source_labels": ["__meta_kubernetes_pod_label_app"], "target_label": "app"},
            {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        ],
    }
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "prometheus-config", "namespace": "monitoring"},
        "data": {"prometheus.yml": yaml.safe_dump({"scrape_configs": [job]})},
    }
    objects = [
        o for o in yaml.safe_load_all((REPO / "e2e/monitoring.yaml").read_text()) if "adapter" not in json.dumps(o)
    ]
    whole_cluster.kubectl("create", "namespace", "monitoring")
    whole_cluster.kubectl("label", "namespace", "monitoring", "disagg-e2e=true")
    try:
        whole_cluster.run("kubectl", "apply", "-f", "-", stdin=yaml.safe_dump_all([config, *objects]))
        yield "http://prometheus.monitoring.svc:9090"
    finally:
        whole_cluster.kubectl("delete", "namespace", "monitoring", "--timeout=60s", timeout_s=90)


@pytest.fixture(scope="module")
def pools(cluster: Cluster, others: None, prometheus: str) -> Iterator[Cluster]:
    source = (Path(__file__).parent / "images/engine_simulator.py").read_text()
    rig.apply(
        cluster,
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "simulator"},
            "data": {"engine_simulator.py": source},
        },
    )
    for role in ROLES:
        rig.apply(cluster, leader_worker_set(role))
    yield cluster
    # As long as their controllers are there: KEDA's objects have finalizers.
    kinds = f"scaledobject,disaggscaler,leaderworkersets.{GROUP}"
    cluster.kubectl("delete", kinds, "--all", "--timeout=120s", timeout_s=150)


def by_keda(cluster: Cluster, prometheus: str) -> None:
    for role in ROLES:
        named = f'{{app="sim-{role}"}}'
        query = f"sum(vllm:num_requests_waiting{named}) + sum(vllm:num_requests_running{named})"
        trigger = {
            "type": "prometheus",
            "metadata": {"serverAddress": prometheus, "query": query, "threshold": KEDA_TARGETS[role]},
        }
        behavior = {"scaleDown": {"stabilizationWindowSeconds": 60}}
        spec = {
            "scaleTargetRef": {"apiVersion": VERSION, "kind": KIND, "name": f"sim-{role}"},
            "minReplicaCount": 1,
            "maxReplicaCount": MOST,
            "pollingInterval": 2,
            "advanced": {"horizontalPodAutoscalerConfig": {"behavior": behavior}},
            "triggers": [trigger],
        }
        rig.apply(
            cluster,
            {"apiVersion": "keda.sh/v1alpha1", "kind": "ScaledObject", "metadata": {"name": role}, "spec": spec},
        )


def scaler(mode: str) -> dict[str, Any]:
    speed = {
        "prefill": {"base": engine.PREFILL_BASE_S, "perToken": engine.PREFILL_S_PER_TOKEN},
        "decode": {
            "base": engine.STEP_BASE_S,
            "perSequence": engine.STEP_S_PER_SEQUENCE,
            "kvTokens": engine.BLOCKS * engine.BLOCK_SIZE,
        },
    }
    pools = {
        role: {"scaleTargetRef": {"apiVersion": VERSION, "kind": KIND, "name": f"sim-{role}"}, "maxReplicas": MOST}
        for role in ROLES
    }
    return {
        "apiVersion": "disagg.dev/v1alpha1",
        "kind": "DisaggScaler",
        "metadata": {"name": "sim"},
        "spec": {
            "mode": mode,
            "objectives": {"ttftSeconds": {"p99": TTFT_S}, "tpotSeconds": {"p99": TPOT_S}},
            "metrics": {"engine": "vllm", "port": 8000},
            "scaling": {"profile": speed},
            **pools,
        },
    }


def by_disagg(cluster: Cluster, _: str) -> None:
    rig.apply(cluster, scaler("Active"))


def sizes(cluster: Cluster) -> dict[str, int]:
    return {role: int(cluster.get(f"leaderworkersets.{GROUP}", f"sim-{role}")["spec"]["replicas"]) for role in ROLES}


def from_the_start(cluster: Cluster) -> None:
    """Leave one engine of each pool, and nobody who scales them."""
    cluster.kubectl("delete", "scaledobject,disaggscaler", "--all", "--timeout=60s", timeout_s=90)
    for role in ROLES:
        cluster.kubectl("scale", f"leaderworkersets.{GROUP}/sim-{role}", "--replicas=1")

    def alone() -> bool:
        pods = [cluster.items("pods", f"app=sim-{role}") for role in ROLES]
        return [len(p) for p in pods] == [1, 1] and all(
            c["status"] == "True" for p in pods for c in p[0]["status"].get("conditions", []) if c["type"] == "Ready"
        )

    cluster.wait("one engine of each pool is ready", alone, 180.0)


def replayed(cluster: Cluster, prometheus: str, scales: Callable[[Cluster, str], None], seed: int) -> Outcome:
    from_the_start(cluster)
    scales(cluster, prometheus)
    try:
        return asyncio.run(Front(cluster, TTFT_S, TPOT_S).replay(drawn(BURST, seed)))
    finally:
        cluster.kubectl("delete", "scaledobject,disaggscaler", "--all", "--timeout=60s", timeout_s=90)


def test_a_shadow_recommends_and_changes_nothing(pools: Cluster) -> None:
    from_the_start(pools)
    rig.apply(pools, scaler("Shadow"))
    trace = drawn([Phase(40, 8, 8, 1000, 100)], seed=0)
    asyncio.run(Front(pools, TTFT_S, TPOT_S).replay(trace))
    recommended = {p["name"]: p["recommended"] for p in pools.get("disaggscaler", "sim")["status"]["pools"]}
    assert recommended["prefill"] >= 2
    assert sizes(pools) == {"prefill": 1, "decode": 1}


def test_a_target_of_keda_is_refused_by_name(pools: Cluster, prometheus: str) -> None:
    from_the_start(pools)
    by_keda(pools, prometheus)
    rig.apply(pools, scaler("Active"))

    def refused() -> bool:
        conditions = pools.get("disaggscaler", "sim").get("status", {}).get("conditions", [])
        return any("ScaledObject prefill" in c.get("message", "") and c["status"] == "False" for c in conditions)

    pools.wait("the ScaledObject is named", refused, 60.0)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_as_many_requests_are_in_time_as_with_keda_for_fewer_pods(
    pools: Cluster, prometheus: str, seed: int, record_property: Callable[[str, object], None]
) -> None:
    theirs = replayed(pools, prometheus, by_keda, seed)
    ours = replayed(pools, prometheus, by_disagg, seed)
    record_property("KEDA", theirs)
    record_property("DisaggScaler", ours)
    print(f"\nKEDA: {theirs}\nDisaggScaler: {ours}")
    assert theirs.failures == []
    assert ours.failures == []
    as_many_for_fewer = ours.kept >= theirs.kept and ours.pods < theirs.pods
    enough_for_no_more = ours.share >= 0.99 and ours.pods <= theirs.pods
    assert as_many_for_fewer or enough_for_no_more, f"KEDA: {theirs}; DisaggScaler: {ours}"
