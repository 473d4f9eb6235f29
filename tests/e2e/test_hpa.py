"""HPAs scale the pools by metrics of the workers, with the files of examples/hpa.

Prometheus scrapes the workers, and prometheus-adapter serves the metrics.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from tests.e2e import rig
from tests.e2e.replay import Replay, halves, sizes

from access import router_url
from kubectl import REPO, Cluster, conditions, pool_status

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(400, func_only=True)]
NAME = "chat"  # as in the examples
EXAMPLES = REPO / "examples/hpa"
ROLES = ("prefill", "decode")
# The model is tiny and the machine is small, so the numbers differ from the examples; nothing else
# does.
TARGETS = {"prefill": "2", "decode": "4"}
MOST_WORKERS = 3
_BUILD_TIMEOUT_S = 20 * 60


@pytest.fixture(scope="module")
def applied(cluster: Cluster) -> Cluster:
    """Apply a resource without `autoscaling`: /scale of each DisaggPool belongs to its HPA.

    Its pods start while the images below are loaded.
    """
    rig.apply(cluster, rig.resource(NAME, "192.168.83.0/24", prefill={"replicas": 1}, decode={"replicas": 1}))
    return cluster


@pytest.fixture(scope="module")
def monitoring(whole_cluster: Cluster, applied: Cluster) -> Iterator[None]:
    """Run Prometheus and prometheus-adapter with the configuration of the example.

    Scrapes and rates cover shorter times.
    """
    subprocess.run([REPO / "e2e/cluster", "monitoring"], check=True, timeout=_BUILD_TIMEOUT_S)
    scraping = yaml.safe_load((EXAMPLES / "scrape.yaml").read_text())
    scraping["scrape_configs"][0] |= {"scrape_interval": "2s", "scrape_timeout": "2s"}
    config = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "prometheus-config", "namespace": "monitoring"},
        "data": {"prometheus.yml": yaml.safe_dump(scraping)},
    }
    rules = (EXAMPLES / "adapter-rules.yaml").read_text().replace("[30s]", "[10s]")
    whole_cluster.kubectl("create", "namespace", "monitoring")
    whole_cluster.kubectl("label", "namespace", "monitoring", "disagg-e2e=true")
    try:
        # `run`, because these objects belong to several namespaces and each names its own.
        whole_cluster.run("kubectl", "apply", "-f", "-", stdin=f"{rules}---\n{yaml.safe_dump(config)}")
        whole_cluster.run("kubectl", "apply", "-f", REPO / "e2e/monitoring.yaml")
        available = ("--for=condition=Available", "apiservice", "-l", "disagg-e2e=true", "--timeout=60s")
        whole_cluster.run("kubectl", "wait", *available, timeout_s=90)
        yield
    finally:
        whole_cluster.run("kubectl", "delete", "--ignore-not-found", "--wait=false", "-f", REPO / "e2e/monitoring.yaml")
        whole_cluster.kubectl("delete", "namespace", "monitoring", "--timeout=60s", timeout_s=90)


def hpas() -> list[dict[str, Any]]:
    """Return the HPAs of the example, with bounds, targets and stabilization for a test."""
    found = list(yaml.safe_load_all((EXAMPLES / "pools.yaml").read_text()))
    for obj in found:
        spec = obj["spec"]
        spec["maxReplicas"] = MOST_WORKERS
        spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"] = 5
        spec["metrics"][0]["pods"]["target"]["averageValue"] = TARGETS[obj["metadata"]["name"].removeprefix(f"{NAME}-")]
    return found


@pytest.fixture(scope="module")
def chat(applied: Cluster, monitoring: None) -> Cluster:
    for obj in hpas():
        rig.apply(applied, obj)
    rig.wait_ready(applied, NAME, prefill=1, decode=1)
    return applied


@pytest.fixture(scope="module")
def url(chat: Cluster) -> Iterator[str]:
    with router_url(chat, f"{NAME}-router") as found:
        yield found


def told(cluster: Cluster) -> str:
    """Return the information that helps to understand a failure."""
    logs = cluster.kubectl("logs", "-n", "monitoring", "deployment/prometheus-adapter", "--tail=15", check=False)
    return f"{cluster.kubectl('describe', 'hpa', check=False)}\n{logs}\n{rig.diagnosis(cluster, NAME)}"


def reads_both_metrics(hpa: dict[str, Any]) -> bool:
    scaling = conditions(hpa).get("ScalingActive", {})
    current = {m.get("type") for m in hpa.get("status", {}).get("currentMetrics") or []}
    return (scaling.get("status"), scaling.get("reason")) == ("True", "ValidMetricFound") and current == {
        "Pods",
        "External",
    }


def test_the_hpas_read_the_pools_numbers_and_hold_still_without_load(chat: Cluster) -> None:
    def active() -> bool:
        return all(reads_both_metrics(chat.get("hpa", f"{NAME}-{role}")) for role in ROLES)

    chat.wait("both HPAs have valid metrics", active, 90.0, detail=lambda: told(chat))
    assert sizes(chat, NAME) == {"prefill": 1, "decode": 1}
    # Only an HPA has a reason to write, and none had one yet.
    assert {p["replicaOwner"] for p in chat.get("dd", NAME)["status"]["pools"]} == {"spec"}


def test_two_hpas_move_the_pools_in_opposite_directions_under_a_bursty_trace(chat: Cluster, url: str) -> None:
    replay, (prompts, answers) = Replay(compressed=4, most_under_way=24), halves()
    assert asyncio.run(replay.until(url, prompts, lambda: sizes(chat, NAME)["prefill"] >= 2)), told(chat)
    full = sizes(chat, NAME)
    assert full["decode"] == 1  # long prompts are no work for decode

    def owner(role: str) -> str:
        return str(pool_status(chat.get("dd", NAME), role)["replicaOwner"])

    def crossed() -> bool:
        now = sizes(chat, NAME)
        return now["decode"] >= 2 and now["prefill"] < full["prefill"]

    assert asyncio.run(replay.until(url, answers, crossed)), told(chat)
    assert replay.errors == []
    assert replay.finished >= len(prompts) + len(answers)
    chat.wait(
        "the status names who wrote decode's number",
        lambda: owner("decode") == "kube-controller-manager",
        20.0,
        detail=lambda: told(chat),
    )


def test_without_load_both_pools_return_to_one_worker_by_the_hpas_own_account(chat: Cluster) -> None:
    rig.wait_ready(chat, NAME, prefill=1, decode=1)
    for role in ROLES:
        found = chat.get("hpa", f"{NAME}-{role}")
        assert reads_both_metrics(found), told(chat)
        assert found["status"]["desiredReplicas"] == 1
    moves = [
        (e["involvedObject"]["name"], e["message"])
        for e in chat.items("events")
        if e.get("reason") == "SuccessfulRescale"
    ]
    for role in ROLES:
        mine = [message for name, message in moves if name == f"{NAME}-{role}"]
        assert any("pods metric disagg_pod_requests above target" in m for m in mine), moves
        assert any("New size: 1; reason: All metrics below target" in m for m in mine), moves
