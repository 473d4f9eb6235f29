"""Tests of the predictive policy in the operator process.

They use a real API server, and counters on the metrics pages of pods.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, Pods, eventually, operator
from tests.ports import free_port

from disagg_operator.autoscaling.records import state_store
from disagg_operator.kube.resources import CONFIG_MAP

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

ROUTER, PREFILL, DECODE = "127.0.0.10", "127.0.0.20", "127.0.0.30"
SCALED = {"autoscaling": {"minReplicas": 1, "maxReplicas": 6}}
# This worker decodes 20 sequences at 50 tokens a second each, and prefills 10,000 tokens a second.
SPEED = {
    "prefill": {"base": 0.001, "perToken": 0.0001},
    "decode": {"base": 0.01, "perSequence": 0.001, "kvTokens": 100000},
}


class Traffic:
    """The counters of a service with requests of 100 prompt tokens and 50 output tokens each."""

    def __init__(self) -> None:
        self.requests_per_s = 0.0
        self._requests = 0.0
        self._at_s = time.monotonic()

    def requests(self) -> float:
        now_s = time.monotonic()
        self._requests += (now_s - self._at_s) * self.requests_per_s
        self._at_s = now_s
        return self._requests

    def router(self) -> dict[str, float]:
        n = self.requests()
        return {
            "disagg_router_arrivals_total": n,
            "disagg_router_arrived_prompt_tokens_total": 100 * n,
            "disagg_router_arrived_prompt_tokens_squared_total": 10_000 * n,
            'disagg_router_objective_requests_total{objective="ttft",within="true"}': n,
            'disagg_router_objective_requests_total{objective="ttft",within="false"}': 0,
            'disagg_router_objective_requests_total{objective="tpot",within="true"}': n,
            'disagg_router_objective_requests_total{objective="tpot",within="false"}': 0,
            "disagg_router_completions_total": n,
            'disagg_router_completed_tokens_total{kind="output"}': 50 * n,
        }

    def decode(self) -> dict[str, float]:
        return {"disagg_worker_generated_tokens_total": 50 * self.requests(), "disagg_worker_kv_tokens": 1000}


@pytest.fixture
async def traffic(cluster: Cluster) -> AsyncIterator[Traffic]:
    """A router and a worker of each pool that receive no requests yet."""
    pods, found, port = Pods(), Traffic(), free_port()
    pods.counters = {ROUTER: found.router, DECODE: found.decode}
    await pods.start([ROUTER, PREFILL, DECODE], port)
    for role, address in (("router", ROUTER), ("prefill", PREFILL), ("decode", DECODE)):
        await cluster.run_pod(role, 0, address, port)
    yield found
    await pods.stop()


async def decision(cluster: Cluster, role: str) -> dict[str, Any]:
    pools = (await cluster.resource())["status"]["pools"]
    return dict(next(p for p in pools if p["name"] == role)["lastDecision"])


async def test_arrivals_drive_both_pools_and_the_decision_explains_itself(
    server: ApiServer, cluster: Cluster, traffic: Traffic, tmp_path: Path
) -> None:
    async with operator(server, tmp_path, cluster.namespace) as running:
        await cluster.apply_resource(prefill=SCALED, decode=SCALED, scaling={"profile": SPEED})

        async def seen() -> bool:
            return bool((await cluster.condition("ScalingActive"))["reason"] == "MetricsFound")

        await eventually("metrics are found", seen)
        traffic.requests_per_s = 60  # 3,000 output tokens a second

        async def up() -> bool:
            return (await cluster.replicas("decode"))[0] >= 3

        await eventually("decode grows", up)
        # The number of replicas is written first, then the status.
        found = await eventually("status tells the decision", lambda: decision(cluster, "decode"))
        assert found["reason"] == "ForecastAboveCapacity"
        assert "workers of work expected" in found["message"]
        assert found["to"] > found["from"] >= 1
        assert found["numbers"]["forecast"] == pytest.approx(found["value"], rel=0.01)
        pool = next(p for p in (await cluster.resource())["status"]["pools"] if p["name"] == "decode")
        assert pool["scaling"]["wanted"] >= found["to"]
        assert pool["scaling"]["needed"] >= 3
        assert "workers of work expected" in await cluster.event("ScaledUp", "decode: ")
        async with httpx.AsyncClient(trust_env=False) as http:
            url = f"http://127.0.0.1:{running.port}"
            metrics = (await http.get(f"{url}/metrics")).text
            lines = (await http.get(f"{url}/decisions/{cluster.namespace}/chat")).text.splitlines()
            assert (await http.get(f"{url}/decisions/{cluster.namespace}/..%2f..")).status_code in (400, 404)
        labels = f'disagg_deployment="chat",name="forecast",namespace="{cluster.namespace}",pool="decode"'
        assert f"disagg_autoscaler_number{{{labels}}}" in metrics
        records = [json.loads(line) for line in lines]
        assert records[0]["begin"] is True
        assert records[-1]["decided"]["decode"] >= 3
        assert records[-1]["decided"]["prefill"] < records[-1]["decided"]["decode"]  # 0.6 workers of work
        assert records[-1]["observation"]["prefill"]["arrivals"] > 0
        assert await running.stop() == 0
    kept = await cluster.kube.get(CONFIG_MAP, cluster.namespace, "chat-scaling-state")
    assert kept is not None
    assert kept["metadata"]["ownerReferences"][0]["uid"] == (await cluster.resource())["metadata"]["uid"]
    state = state_store.decode(kept["data"]["state"])
    assert state is not None
    assert state["state"]["seen_s"] == pytest.approx(time.time(), abs=60)
    # The next operator goes on from there: its first record begins with a state that has seen all
    # of this.
    folder = tmp_path / "records"
    async with operator(server, tmp_path, cluster.namespace, DISAGG_RECORD_DIR=str(folder)):

        async def recorded() -> str:
            """Return the first line, once it is there as a whole."""
            texts = [path.read_text() for path in folder.iterdir()] if folder.exists() else []
            return next((text.partition("\n")[0] for text in texts if "\n" in text), "")

        first = json.loads(await eventually("a step is recorded", recorded))
        assert first["state"]["began_s"] == pytest.approx(state["state"]["began_s"], abs=20)


async def test_dry_run_decides_says_and_changes_nothing(
    server: ApiServer, cluster: Cluster, traffic: Traffic, tmp_path: Path
) -> None:
    async with operator(server, tmp_path, cluster.namespace):
        await cluster.apply_resource(decode=SCALED, scaling={"profile": SPEED, "dryRun": True})
        traffic.requests_per_s = 60

        async def said() -> bool:
            found = await decision(cluster, "decode")
            return bool(found["dryRun"] and found["to"] >= 3)

        await eventually("the decision is told", said)
        assert await cluster.replicas("decode") == (1, 1)
        assert await cluster.replicas("prefill") == (1, 1)
