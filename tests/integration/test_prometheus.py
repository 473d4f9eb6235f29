"""Tests of scaling with a real Prometheus that scrapes real metrics pages of pods.

They also use a Prometheus that is dead, empty or answers nonsense.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from tests.certificates import Certificate, certificate
from tests.connections import serving
from tests.integration.apiserver import ApiServer, program_path
from tests.integration.operator_process import Cluster, Operator, Pods, eventually, operator
from tests.integration.test_predictive import SPEED, Traffic
from tests.ports import free_port

from disagg_operator.autoscaling.signals.pool_reading import PoolReading, reading
from disagg_operator.autoscaling.signals.prometheus_access import PrometheusEndpoint, Unreadable
from disagg_operator.autoscaling.signals.prometheus_query import PrometheusDoor
from disagg_operator.autoscaling.signals.samples import Sample
from disagg_operator.kube.resources import EVENT, SECRET

pytestmark = pytest.mark.apiserver


# These are passwords (after "s3cr3t-") and their bcrypt hashes with the lowest cost, as the web
# configuration of Prometheus requires them.
WORDS = {
    "one": "$2b$04$abcdefghijklmnopqrstuu0ofFH2p1ORNFTJ14nzJbjvbtT1JmALu",
    "two": "$2b$04$abcdefghijklmnopqrstuuwkxvmfRFuZk8ut.dm1w4ZnWPSGhZ8He",
}


def write_web_config(folder: Path, tls: Certificate, word: str) -> None:
    """Write the web configuration, which Prometheus reads for every request."""
    servers = {"cert_file": str(tls.crt), "key_file": str(tls.key)}
    fresh = folder / "web.yml.new"
    fresh.write_text(json.dumps({"tls_server_config": servers, "basic_auth_users": {"disagg": WORDS[word]}}))
    fresh.replace(folder / "web.yml")


@contextlib.asynccontextmanager
async def prometheus(
    folder: Path, targets: dict[str, dict[str, str]], tls: Certificate | None = None, *, remote_write: bool = False
) -> AsyncIterator[str]:
    """Run a Prometheus that scrapes `targets` (address -> labels) every half second; yields its
    URL.

    With `tls` it requires user disagg and the password that `write_web_config` wrote. With
    `remote_write`, samples of the last two days can be written to it.
    """
    port = free_port()
    static = [{"targets": [address], "labels": labels} for address, labels in targets.items()]
    config: dict[str, Any] = {
        "global": {"scrape_interval": "500ms", "scrape_timeout": "400ms"},
        "scrape_configs": [{"job_name": "disagg", "static_configs": static}],
    }
    if remote_write:
        config["storage"] = {"tsdb": {"out_of_order_time_window": "2d"}}
    (folder / "prometheus.yml").write_text(json.dumps(config))
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            program_path("prometheus"), f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn",
            *([] if tls is None else [f"--web.config.file={folder}/web.yml"]),
            *(["--web.enable-remote-write-receiver"] if remote_write else []), stdout=log, stderr=log,
        )  # fmt: skip
    try:
        url = f"{'http' if tls is None else 'https'}://127.0.0.1:{port}"
        trust = True if tls is None else ssl.create_default_context(cafile=tls.crt)

        async def up() -> bool:
            async with httpx.AsyncClient(trust_env=False, verify=trust) as client:
                return (await client.get(f"{url}/-/ready")).status_code == (200 if tls is None else 401)

        await eventually("Prometheus is ready", up)
        yield url
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 20)


@pytest.fixture
async def door() -> AsyncIterator[PrometheusDoor]:
    found = PrometheusDoor(timeout_s=30.0)
    yield found
    await found.close()


async def test_the_documented_query_reads_a_real_prometheus(door: PrometheusDoor, tmp_path: Path) -> None:
    pods, port = Pods(), free_port()
    pods.load, pods.waiting = {"127.0.0.30": 3, "127.0.0.31": "NaN"}, {"prefill": 2.0, "decode": 7.0}
    counted = {"disagg_router_arrivals_total": 0.0, "disagg_router_arrived_prompt_tokens_total": 0.0}
    counted['disagg_router_completed_tokens_total{kind="output"}'] = 0.0

    def count() -> dict[str, float]:
        for name in counted:
            counted[name] += 10.0
        return counted

    pods.counters["127.0.0.10"] = count
    await pods.start(["127.0.0.10", "127.0.0.30", "127.0.0.31"], port)
    names = {
        "127.0.0.10": "chat-router-0a1b2c3d4e-00000",
        "127.0.0.30": "chat-decode-0a1b2c3d4e-00000",
        "127.0.0.31": "chat-decode-0a1b2c3d4e-00001",
    }
    targets = {f"{a}:{port}": {"namespace": "ns", "pod": pod} for a, pod in names.items()}
    try:
        async with prometheus(tmp_path, targets) as url:

            async def read() -> dict[str, Sample] | None:
                found = await door.read(PrometheusEndpoint(url), "ns", "chat", time.time())
                return found if found and set(found) == set(names.values()) else None

            found = await eventually("Prometheus has scraped", read)
            decode = {pod: sample for pod, sample in found.items() if "decode" in pod}
            routers = {pod: sample for pod, sample in found.items() if "router" in pod}
            # The value that is NaN is absent.
            assert reading("decode", decode, routers) == PoolReading({names["127.0.0.30"]: 3.0}, 7.0)
            # the time of the scrape, not that of the query
            assert abs(found[names["127.0.0.10"]].at_s - time.time()) < 30
            # an empty result is unknown
            assert await door.read(PrometheusEndpoint(url), "ns", "other", time.time()) == {}
            assert await door.read(PrometheusEndpoint(url), "ns", "chat", time.time() + 100) == {}  # so is an old one

            async def learned() -> bool:
                minutes = await door.history(PrometheusEndpoint(url), "ns", "chat", time.time() + 60)
                return bool(minutes) and minutes[-1].requests > 0 and minutes[-1].output_tokens > 0

            await eventually("the minutes before are read", learned)
            assert await door.history(PrometheusEndpoint(url), "ns", "other", time.time()) == []
    finally:
        await pods.stop()


async def test_a_prometheus_that_is_not_there_or_talks_nonsense_says_nothing(door: PrometheusDoor) -> None:
    nowhere = PrometheusEndpoint(f"http://127.0.0.1:{free_port()}")
    for call in (door.read(nowhere, "ns", "chat", 0.0), door.history(nowhere, "ns", "chat", 1e9)):
        with pytest.raises(Unreadable, match="does not answer"):
            await call
    answers = iter(["<html>", '{"data": {"result": 7}}', '{"data": null}', "[]"] * 4)

    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=next(answers), content_type="application/json")

    async with serving(web.get("/api/v1/query", answer)) as port:
        for _ in range(4):
            with pytest.raises(Unreadable, match="not a Prometheus's"):
                await door.read(PrometheusEndpoint(f"http://127.0.0.1:{port}"), "ns", "chat", 0.0)


async def run_pods(cluster: Cluster, port: int, **addresses: str) -> dict[str, dict[str, str]]:
    """Create a pod of each component, and return the targets of Prometheus for them."""
    pods = {await cluster.run_pod(component, 0, a, port): a for component, a in addresses.items()}
    return {f"{a}:{port}": {"namespace": cluster.namespace, "pod": pod} for pod, a in pods.items()}


@pytest.mark.apiserver
async def test_the_operator_scales_by_prometheus_and_holds_when_it_dies(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    pods, port = Pods(), free_port()
    pods.load["127.0.0.30"] = 11
    decode: dict[str, Any] = {
        "autoscaling": {
            "maxReplicas": 4,
            "metrics": [{"type": "QueueDepth", "target": {"averageValue": 4}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 1}},
        }
    }
    await pods.start(["127.0.0.10", "127.0.0.30"], port)
    try:
        async with operator(server, tmp_path, cluster.namespace):
            targets = await run_pods(cluster, port, router="127.0.0.10", decode="127.0.0.30")
            async with prometheus(tmp_path, targets) as url:
                await cluster.apply_resource(decode=decode, observability={"prometheus": {"url": url}})

                async def up() -> bool:
                    return await cluster.replicas("decode") == (3, 3)

                await eventually("11 requests at 4 a worker make 3 workers", up)
                pods.load["127.0.0.30"] = 0

            # The condition alone could still be that of the time before the first scrape.
            async def blind() -> bool:
                status = (await cluster.resource())["status"]
                active = next(c for c in status["conditions"] if c["type"] == "ScalingActive")
                decided = {p["name"]: p["lastDecision"]["reason"] for p in status["pools"] if "lastDecision" in p}
                return (active["reason"], decided) == ("MetricsUnavailable", {"decode": "MetricsUnavailable"})

            await eventually("a dead Prometheus is reported, as the last decision too", blind)
            held = await cluster.replicas("decode")
            assert held[0] >= 1
    finally:
        await pods.stop()


async def apply_secret(cluster: Cluster, tls: Certificate, word: str) -> None:
    """Apply the Secret `prom` with the user, a password and the certificate authority."""
    data = {"username": "disagg", "password": f"s3cr3t-{word}", "ca.crt": tls.pem}
    meta = {"name": "prom", "namespace": cluster.namespace}
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": meta, "stringData": data}
    params = {"fieldManager": "test", "force": "true"}
    path = SECRET.path(cluster.namespace, "prom")
    await cluster.raw("PATCH", path, body, "application/apply-patch+yaml", params)


async def scaling_is(cluster: Cluster, reason: str, words: str = "") -> None:
    """Wait until the condition ScalingActive has a reason, and words in its message."""

    async def told() -> bool:
        found = await cluster.condition("ScalingActive")
        return bool(found["reason"] == reason and words in found["message"])

    await eventually(f"ScalingActive says {reason} {words}", told)


async def grown_to(cluster: Cluster, n: int) -> None:
    """Wait until decode has `n` workers."""

    async def grown() -> bool:
        return await cluster.replicas("decode") == (n, n)

    await eventually(f"decode has {n} workers", grown)


async def check_no_password_is_told(cluster: Cluster, running: Operator) -> None:
    """Check that no log, event or status contains a password, and that an event was recorded."""
    said = running.log.read_text()
    events = await cluster.kube.list(EVENT, cluster.namespace)
    told = said + json.dumps([events, await cluster.resource()])
    assert "CredentialsUnavailable" in {e["reason"] for e in events}
    for word in WORDS:
        assert f"s3cr3t-{word}" not in told
        assert base64.b64encode(f"disagg:s3cr3t-{word}".encode()).decode() not in told


async def test_the_operator_scales_by_a_prometheus_behind_tls_and_a_password_that_comes_late_and_changes(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    pods, port, tls = Pods(), free_port(), certificate(tmp_path)
    pods.load["127.0.0.30"] = 11
    target = {"metrics": [{"type": "QueueDepth", "target": {"averageValue": 4}}]}
    decode: dict[str, Any] = {"autoscaling": {"maxReplicas": 8, **target}}
    ref = {"name": "prom"}
    auth = {"basicAuth": {"username": ref, "password": ref}, "tlsConfig": {"ca": {"secret": ref}}}
    await pods.start(["127.0.0.10", "127.0.0.30"], port)
    write_web_config(tmp_path, tls, "one")
    try:
        async with operator(server, tmp_path, cluster.namespace) as running:
            targets = await run_pods(cluster, port, router="127.0.0.10", decode="127.0.0.30")
            async with prometheus(tmp_path, targets, tls) as url:
                await cluster.apply_resource(decode=decode, observability={"prometheus": {"url": url, **auth}})
                missing = "spec.observability.prometheus.basicAuth.username: Secret prom does not exist"
                await scaling_is(cluster, "CredentialsUnavailable", missing)
                assert await cluster.replicas("decode") == (1, 1)
                await apply_secret(cluster, tls, "two")
                await scaling_is(cluster, "MetricsUnavailable", "HTTP 401")
                await apply_secret(cluster, tls, "one")
                await grown_to(cluster, 3)
                await scaling_is(cluster, "MetricsFound")
                pods.load["127.0.0.30"] = 24
                write_web_config(tmp_path, tls, "two")
                await apply_secret(cluster, tls, "two")
                await grown_to(cluster, 6)
            await check_no_password_is_told(cluster, running)
    finally:
        await pods.stop()


async def test_the_predictive_policy_scales_by_prometheus_and_says_when_it_is_gone(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    traffic, pods, port = Traffic(), Pods(), free_port()
    traffic.requests_per_s = 60
    pods.counters = {"127.0.0.10": traffic.router, "127.0.0.30": traffic.decode}
    await pods.start(["127.0.0.10", "127.0.0.20", "127.0.0.30"], port)
    try:
        async with operator(server, tmp_path, cluster.namespace):
            targets = await run_pods(cluster, port, router="127.0.0.10", prefill="127.0.0.20", decode="127.0.0.30")
            async with prometheus(tmp_path, targets) as url:

                async def scraped() -> bool:
                    async with httpx.AsyncClient(trust_env=False) as http:
                        found = await http.get(
                            f"{url}/api/v1/query", params={"query": "disagg_router_arrivals_total > 0"}
                        )
                    return bool(found.json()["data"]["result"])

                await eventually("Prometheus has scraped", scraped)
                await cluster.apply_resource(
                    decode={"autoscaling": {"maxReplicas": 6}},
                    scaling={"profile": SPEED},
                    observability={"prometheus": {"url": url}},
                )

                async def up() -> bool:
                    return (await cluster.replicas("decode"))[0] >= 3

                await eventually("60 requests a second make at least 3 workers", up)
            held = await cluster.replicas("decode")

            async def blind() -> bool:
                return bool((await cluster.condition("ScalingActive"))["reason"] == "MetricsUnavailable")

            await eventually("a Prometheus that is gone is reported", blind, 60.0)
            assert (await cluster.replicas("decode"))[0] >= held[0]
    finally:
        await pods.stop()
