"""Traces of real processes in a real Jaeger, which is an OpenTelemetry collector too.

`make test-tracing` builds it.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchmarks.processes import ROOT, process, wait_ready
from tests.ports import free_port

pytestmark = pytest.mark.long

MODEL = "stdlib"
_CONFIG = """
service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces: {{receivers: [otlp], exporters: [jaeger_storage_exporter]}}
  telemetry: {{metrics: {{level: none}}}}
extensions:
  jaeger_query:
    storage: {{traces: memory}}
    http: {{endpoint: "127.0.0.1:{query}"}}
    grpc: {{endpoint: "127.0.0.1:{grpc}"}}
  jaeger_storage: {{backends: {{memory: {{memory: {{max_traces: 100000}}}}}}}}
receivers:
  otlp: {{protocols: {{http: {{endpoint: "127.0.0.1:{otlp}"}}}}}}
exporters:
  jaeger_storage_exporter: {{trace_storage: memory}}
"""


def _program() -> str:
    """Return the path of Jaeger, as `e2e/cluster build jaeger` leaves it."""
    code = "from localkube import gobuild, settings; print(gobuild.program(settings.Settings.from_env(), 'bin/jaeger'))"
    environment = os.environ | {"PYTHONPATH": str(ROOT / "e2e")}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout.strip()


@contextmanager
def jaeger(folder: Path, otlp: int, query: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a Jaeger that keeps traces in memory."""
    config = folder / "jaeger.yaml"
    config.write_text(_CONFIG.format(otlp=otlp, query=query, grpc=free_port()))
    with (folder / "jaeger.log").open("ab") as log:
        child = subprocess.Popen([_program(), "--config", str(config)], stdout=log, stderr=log)
    try:
        yield child
    finally:
        child.terminate()
        child.wait(30)


@dataclass
class Served:
    """A router with one prefill worker and two decode workers, and a Jaeger."""

    http: httpx.AsyncClient
    url: str
    query: str
    decode: dict[str, subprocess.Popen[bytes]]

    async def ask(self, **fields: Any) -> httpx.Response:
        body = {"model": MODEL, "prompt": "Return a list of the files", "max_tokens": 24, "temperature": 0} | fields
        return await self.http.post(f"{self.url}/v1/completions", json=body, headers={"x-disagg-trace": "1"})

    async def trace(self, trace_id: str) -> list[dict[str, Any]]:
        """Return the spans of a trace as Jaeger's API has them, once it has them."""
        async with asyncio.timeout(90):
            while True:
                answer = await self.http.get(f"{self.query}/api/traces/{trace_id}")
                if answer.status_code == 200 and answer.json()["data"]:
                    spans: list[dict[str, Any]] = answer.json()["data"][0]["spans"]
                    return spans
                await asyncio.sleep(0.2)

    async def kept(self) -> set[str]:
        """Return the IDs of all traces of the router that Jaeger has."""
        asked = {"service": "disagg-router", "limit": "5000", "lookback": "1h"}
        answer = await self.http.get(f"{self.query}/api/traces", params=asked)
        return {trace["traceID"] for trace in answer.json()["data"]}

    async def metric(self, line: str) -> float:
        text = (await self.http.get(f"{self.url}/metrics")).text
        return next((float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if x.startswith(line + " ")), 0.0)

    async def until_metric(self, line: str, value: float) -> None:
        async with asyncio.timeout(90):
            while await self.metric(line) < value:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def served(folder: Path, otlp: int, query: int, **options: object) -> AsyncIterator[Served]:
    (folder / "key").write_text(secrets.token_hex(32))
    common = {"model_name": MODEL, "cluster_key_file": folder / "key"}
    model = {"model_uri": f"file://{ROOT / 'models' / 'stdlib-llama'}", "kv_cache_bytes": 64 << 20}
    with ExitStack() as stack:
        children, listed = {}, []
        for name in ("prefill", "decode-0", "decode-1"):
            port, role = free_port(), name.partition("-")[0]
            settings = common | model | {"role": role, "port": port, "kv_port": 0, "pod_name": name}
            children[name] = stack.enter_context(process("disagg_worker", folder / f"{name}.log", **settings))
            listed.append({"name": name, "url": f"http://127.0.0.1:{port}"})
        (folder / "members.json").write_text(json.dumps({"workers": listed}))
        port = free_port()
        settings = common | {
            "port": port, "membership": f"file://{folder / 'members.json'}", "poll_interval_s": 0.2,
            "tracing_endpoint": f"http://127.0.0.1:{otlp}", "local_prefill_max_tokens": 0,
        }  # fmt: skip
        stack.enter_context(process("disagg_router", folder / "router.log", **(settings | options)))
        async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
            found = Served(
                http, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{query}",
                {name: child for name, child in children.items() if name != "prefill"},
            )  # fmt: skip
            for worker in listed:
                await wait_ready(http, f"{worker['url']}/readyz")
            async with asyncio.timeout(90):
                while await found.metric('disagg_router_pairs{state="healthy"}') < 2:
                    await asyncio.sleep(0.1)
            yield found


def tags(span: dict[str, Any]) -> dict[str, Any]:
    return {tag["key"]: tag["value"] for tag in span["tags"]}


def parent(span: dict[str, Any]) -> str:
    return next((r["spanID"] for r in span["references"] if r["refType"] == "CHILD_OF"), "")


async def test_one_trace_shows_all_spans_with_the_times_that_the_router_reports(tmp_path: Path) -> None:
    otlp, query = free_port(), free_port()
    with jaeger(tmp_path, otlp, query):
        async with served(tmp_path, otlp, query, tracing_sampling_ratio=1) as s:
            answer = await s.ask()
            said = answer.json()["disagg"]
            spans = {x["operationName"]: x for x in await s.trace(answer.headers["x-disagg-trace-id"])}
            assert set(spans) == {
                "POST /v1/completions", "disagg.admit", "disagg.tokenize", "disagg.choose", "disagg.attempt",
                "disagg.reserve", "disagg.prefill", "disagg.kv_transfer", "disagg.decode",
            }  # fmt: skip
            root, attempt = spans["POST /v1/completions"], spans["disagg.attempt"]
            assert parent(root) == ""
            assert parent(attempt) == parent(spans["disagg.admit"]) == root["spanID"]
            assert {parent(spans[f"disagg.{n}"]) for n in ("reserve", "prefill", "kv_transfer", "decode")} == {
                attempt["spanID"]
            }
            told, moved = tags(root), tags(spans["disagg.kv_transfer"])
            assert told["disagg.ttft_s"] == pytest.approx(said["ttft_s"], abs=1e-6)
            assert (told["disagg.path"], told["gen_ai.usage.output_tokens"]) == ("remote", 24)
            assert spans["disagg.kv_transfer"]["duration"] == pytest.approx(1e6 * said["transfer_s"], abs=2)
            assert (moved["disagg.kv.bytes"], moved["disagg.kv.exposed_s"]) == (said["kv_bytes"], said["exposed_s"])
            spent = tags(spans["disagg.prefill"])
            in_worker_us = 1e6 * (spent["disagg.prefill.wait_s"] + spent["disagg.prefill.compute_s"])
            assert 0 < in_worker_us <= spans["disagg.prefill"]["duration"]
            for stage in ("reserve", "prefill", "decode"):
                counted_s = await s.metric(f'disagg_router_stage_seconds_sum{{stage="{stage}"}}')
                assert spans[f"disagg.{stage}"]["duration"] == pytest.approx(1e6 * counted_s, abs=2)


async def test_a_decode_worker_that_is_killed_makes_a_second_attempt(tmp_path: Path) -> None:
    otlp, query = free_port(), free_port()
    with jaeger(tmp_path, otlp, query):
        async with served(tmp_path, otlp, query, tracing_sampling_ratio=0) as s:
            body = {"model": MODEL, "prompt": "Return a list", "max_tokens": 400, "temperature": 0, "stream": True}
            async with s.http.stream(
                "POST", f"{s.url}/v1/completions", json=body, headers={"x-disagg-trace": "1"}
            ) as answer:
                lines = answer.aiter_lines()
                for _ in range(20):
                    await anext(lines)
                busy = [child for name, child in s.decode.items() if await _runs(s, tmp_path, name)]
                assert busy
                for child in busy:
                    os.kill(child.pid, signal.SIGKILL)
                rest = [line async for line in lines]
            assert rest[-2:]
            assert '"error"' not in "".join(rest)
            found = await s.trace(answer.headers["x-disagg-trace-id"])
            attempts = [x for x in found if x["operationName"] == "disagg.attempt"]
            attempts.sort(key=lambda x: x["startTime"])
            told = [tags(x) for x in attempts]
            assert [(t["disagg.attempt.number"], t.get("error.type")) for t in told] == [(1, "worker_lost"), (2, None)]
            assert {tags(x)["disagg.pod"] for x in found if x["operationName"] == "disagg.decode"} == set(s.decode)


async def _runs(s: Served, folder: Path, name: str) -> bool:
    """Return whether a worker decodes something now."""
    members = json.loads((folder / "members.json").read_text())["workers"]
    url = next(worker["url"] for worker in members if worker["name"] == name)
    text = (await s.http.get(f"{url}/metrics")).text
    lines = [line for line in text.splitlines() if line.startswith("disagg_worker_running_requests")]
    return any(float(line.rsplit(" ", 1)[1]) > 0 for line in lines)


async def test_a_jaeger_that_stops_and_comes_back_costs_only_spans(tmp_path: Path) -> None:
    otlp, query = free_port(), free_port()
    async with served(tmp_path, otlp, query, tracing_sampling_ratio=1, tracing_timeout_s=1) as s:
        assert (await s.ask()).status_code == 200
        await s.until_metric('disagg_router_trace_spans_dropped_total{reason="failed"}', 1)
        with jaeger(tmp_path, otlp, query):
            async with asyncio.timeout(90):
                while not await _is_up(s):
                    await asyncio.sleep(0.2)
            answer = await s.ask()
            assert await s.trace(answer.headers["x-disagg-trace-id"])


async def _is_up(s: Served) -> bool:
    try:
        return (await s.http.get(f"{s.query}/api/services")).status_code == 200
    except httpx.TransportError:
        return False


async def test_all_of_the_late_ones_and_a_share_of_the_others_are_kept(tmp_path: Path) -> None:
    otlp, query = free_port(), free_port()
    with jaeger(tmp_path, otlp, query):
        async with served(tmp_path, otlp, query, tracing_sampling_ratio=0.05) as s:
            ids = {(await s.ask(max_tokens=1)).headers["x-disagg-trace-id"] for _ in range(400)}
            drawn = {i for i in ids if int(i[-14:], 16) >= round(0.95 * (1 << 56))}
            await s.until_metric("disagg_router_trace_spans_total", 1)
            async with asyncio.timeout(90):
                while not await _is_up(s) or {_padded(i) for i in await s.kept()} != drawn:
                    await asyncio.sleep(0.5)
            assert 3 <= len(drawn) <= 50
        (tmp_path / "late").mkdir()
        async with served(tmp_path / "late", otlp, query, tracing_sampling_ratio=0, objective_ttft_s=1e-6) as s:
            late = {(await s.ask(max_tokens=1)).headers["x-disagg-trace-id"] for _ in range(50)}
            async with asyncio.timeout(90):
                while {_padded(i) for i in await s.kept()} - drawn != late:
                    await asyncio.sleep(0.5)


def _padded(trace_id: str) -> str:
    """Return a trace's ID with the zeros that Jaeger leaves out."""
    return trace_id.rjust(32, "0")
