"""Tests of the traces of requests, from real sockets to a collector on a real socket."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.token_worker import Fault, TokenWorker
from tests.router.stack import Stack
from tests.router.tracing.collector import Collected, attributes, collector

from disagg_router.openai import request_spans

ASK = {"model": "m", "prompt": [5, 6, 7], "max_tokens": 8, "seed": 5, "temperature": 0}
ROOT = "POST /v1/completions"
PARENT_TRACE, PARENT_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
KEPT = 'disagg_router_traces_total{reason="%s"}'


class Telling(TokenWorker):
    """A prefill worker that tells how long a prompt took there; others are of an older release."""

    async def _prefill_lines(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        spent = {"version": 1, "wait_s": 0.25, "compute_s": 0.5}
        async for line in super()._prefill_lines(body):
            yield line | ({"cached_tokens": 2, "spent": spent} if line["type"] == "token" else {})


@asynccontextmanager
async def traced(folder: Path, *workers: TokenWorker, **options: Any) -> AsyncIterator[tuple[Stack, Collected]]:
    """Run a router whose traces go to a collector."""
    async with collector() as at:
        pair = workers or (Telling("p", "prefill"), TokenWorker("d", "decode"))
        defaults: dict[str, Any] = {"tracing_sampling_ratio": 1.0, "local_prefill_max_tokens": 0}
        async with Stack(folder, *pair, tracing_endpoint=at.url, **(defaults | options)) as stack:
            yield stack, at


def seconds(span: Any) -> float:
    return float(span.end_time_unix_nano - span.start_time_unix_nano) / 1e9


def within(at: Collected, outer: Any) -> dict[str, Any]:
    """Return the spans within another one by their names, without `disagg.`."""
    found = [s for s in at.spans if s.parent_span_id == outer.span_id]
    assert len({s.name for s in found}) == len(found)
    return {s.name.removeprefix("disagg."): s for s in found}


async def stages(stack: Stack) -> dict[str, float]:
    text = (await stack.http.get("/metrics")).text
    found = re.findall(r'^disagg_router_stage_seconds_sum\{stage="(\w+)"\} (\S+)', text, re.MULTILINE)
    return {name: float(value) for name, value in found}


@pytest.mark.parametrize("streamed", [False, True])
async def test_one_trace_shows_all_spans_with_the_times_of_the_metrics(
    tmp_path: Path, streamed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with traced(tmp_path) as (stack, at):
        answer = await stack.http.post(
            "/v1/completions", json=ASK | {"stream": streamed}, headers={"x-request-id": "mine-1"}
        )
        (root,) = await at.until(ROOT)
        trace_id = answer.headers["x-disagg-trace-id"]
        assert {s.trace_id.hex() for s in at.spans} == {trace_id}
        assert f"trace={trace_id}" in caplog.text
        assert (root.parent_span_id, root.kind, list(root.links)) == (b"", root.SPAN_KIND_SERVER, [])
        told = attributes(root)
        assert told.items() >= {
            "http.request.method": "POST", "http.route": "/v1/completions", "http.response.status_code": 200,
            "gen_ai.operation.name": "text_completion", "gen_ai.request.model": "m", "gen_ai.usage.input_tokens": 3,
            "gen_ai.usage.output_tokens": 8, "gen_ai.usage.cache_read.input_tokens": 2, "disagg.request_id": "mine-1",
            "disagg.path": "remote", "disagg.attempts": 1, "disagg.stream": streamed, "disagg.kept": "share",
        }.items()  # fmt: skip
        assert told["gen_ai.response.finish_reasons"] == ["length"]
        assert at.resources[0]["service.name"] == "disagg-router"
        top = within(at, root)
        assert set(top) == {"admit", "choose", "attempt"}
        assert set(within(at, top["admit"])) == {"tokenize"}
        parts = within(at, top["attempt"])
        assert set(parts) == {"reserve", "prefill", "kv_transfer", "decode"}
        counted = await stages(stack)
        assert seconds(top["admit"]) + seconds(top["choose"]) == pytest.approx(counted["admit"], abs=1e-5)
        for name, stage in (("reserve", "reserve"), ("prefill", "prefill"), ("kv_transfer", "transfer"),
                            ("decode", "decode")):  # fmt: skip
            assert seconds(parts[name]) == pytest.approx(counted[stage], abs=1e-5), name
        assert told["disagg.ttft_s"] == pytest.approx(await stack.metric("disagg_router_ttft_seconds_sum"))
        prefill = attributes(parts["prefill"])
        assert (prefill["disagg.prefill.wait_s"], prefill["disagg.prefill.compute_s"]) == (0.25, 0.5)
        assert attributes(parts["kv_transfer"])["disagg.kv.exposed_s"] == 0.001
        for span in at.spans:
            assert root.start_time_unix_nano <= span.start_time_unix_nano
            assert span.end_time_unix_nano <= root.end_time_unix_nano
            assert span.start_time_unix_nano <= span.end_time_unix_nano


async def test_workers_of_an_older_release_are_traced_without_what_they_do_not_tell(tmp_path: Path) -> None:
    async with traced(tmp_path, TokenWorker("p", "prefill"), TokenWorker("d", "decode")) as (stack, at):
        assert (await stack.complete()).status_code == 200
        await at.until(ROOT)
        assert set(attributes(at.named("disagg.prefill")[0])) == {"disagg.pod"}


async def test_a_failover_is_a_second_attempt_and_is_kept_whatever_the_ratio(tmp_path: Path) -> None:
    workers = [Telling("p", "prefill"), TokenWorker("d0", "decode"), TokenWorker("d1", "decode")]
    async with traced(tmp_path, *workers, tracing_sampling_ratio=0) as (stack, at):
        fault = Fault("decode", "die", after_tokens=3)
        for worker in workers[1:]:
            worker.faults = [fault]
        assert (await stack.complete()).status_code == 200
        (root,) = await at.until(ROOT)
        first, second = at.named("disagg.attempt")
        assert first.parent_span_id == second.parent_span_id == root.span_id
        one, two = attributes(first), attributes(second)
        assert (one["disagg.attempt.number"], one["error.type"], first.status.code) == (1, "worker_lost", 2)
        assert (two["disagg.attempt.number"], two.get("error.type"), second.status.code) == (2, None, 0)
        assert set(within(at, first)) == set(within(at, second)) == {"reserve", "prefill", "kv_transfer", "decode"}
        assert {attributes(s)["disagg.pod"] for s in at.named("disagg.decode")} == {"d0", "d1"}
        assert first.end_time_unix_nano <= second.start_time_unix_nano
        assert attributes(root)["disagg.kept"] == "retried"
        assert await stack.metric(KEPT % "retried") == 1


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_a_stranger_decides_nothing_and_is_linked(tmp_path: Path, flags: str) -> None:
    async with traced(tmp_path) as (stack, at):
        parent = {"traceparent": f"00-{PARENT_TRACE}-{PARENT_SPAN}-{flags}", "tracestate": "a=b", "baggage": "k=v"}
        answer = await stack.http.post("/v1/completions", json=ASK, headers=parent)
        (root,) = await at.until(ROOT)
        assert root.trace_id.hex() == answer.headers["x-disagg-trace-id"] != PARENT_TRACE
        assert root.parent_span_id == b""
        assert [(link.trace_id.hex(), link.span_id.hex()) for link in root.links] == [(PARENT_TRACE, PARENT_SPAN)]


async def test_a_trusted_parent_is_continued_if_it_is_recorded_and_only_then(tmp_path: Path) -> None:
    async with traced(tmp_path, tracing_trust_parent=True, tracing_sampling_ratio=0) as (stack, at):
        for flags in ("00", "01"):
            parent = {"traceparent": f"00-{PARENT_TRACE}-{PARENT_SPAN}-{flags}"}
            answer = await stack.http.post("/v1/completions", json=ASK | {"seed": int(flags)}, headers=parent)
            assert answer.headers["x-disagg-trace-id"] == PARENT_TRACE
        assert (await stack.complete()).status_code == 200  # without a parent, and not drawn
        (root,) = await at.until(ROOT)
        assert (root.trace_id.hex(), root.parent_span_id.hex()) == (PARENT_TRACE, PARENT_SPAN)
        assert not root.links
        assert await stack.metric(KEPT % "parent") == 1
        assert len(at.named(ROOT)) == 1


async def test_what_was_late_is_kept_and_what_was_not_is_drawn(tmp_path: Path) -> None:
    slow = {"tracing_sampling_ratio": 0, "objective_ttft_s": 1e-6}
    async with traced(tmp_path, **slow) as (stack, at):
        for _ in range(5):
            assert (await stack.complete()).status_code == 200
        await at.until(ROOT, 5)
        assert await stack.metric(KEPT % "slow") == 5
    (tmp_path / "fast").mkdir()
    async with traced(tmp_path / "fast", **(slow | {"objective_ttft_s": 60})) as (stack, at):
        for _ in range(5):
            assert (await stack.complete()).status_code == 200
        text = (await stack.http.get("/metrics")).text
        assert re.findall(r"^disagg_router_traces_total.* (\S+)$", text, re.MULTILINE) == ["0.0"] * 5
    assert not at.spans


async def test_no_text_of_a_prompt_or_of_an_answer_leaves_the_router(tmp_path: Path) -> None:
    secret = "Xyzzy-Plugh"
    async with traced(tmp_path) as (stack, at):
        sound = {"model": "m", "prompt": secret, "max_tokens": 8, "stop": [secret], "user": secret}
        bodies: list[dict[str, Any]] = [
            sound,
            sound | {"model": secret},
            sound | {"max_tokens": secret},
            sound | {"max_tokens": 10_000_000},
            {"messages": [{"role": "user", "content": secret}], "model": "m"},
        ]
        answers = [await stack.http.post("/v1/completions", json=body) for body in bodies]
        chat = {"messages": [{"role": "user", "content": secret}], "model": "m", "max_tokens": 4}
        answers.append(await stack.http.post("/v1/chat/completions", json=chat))
        answers.append(await stack.http.post("/v1/completions", content=secret.encode()))
        assert [a.status_code for a in answers] == [200, 404, 400, 400, 400, 200, 400]
        await at.until(ROOT, 6)
        await at.until("POST /v1/chat/completions")
        said = answers[0].json()["choices"][0]["text"]
        assert said.encode() not in at.raw
        assert secret.encode() not in at.raw
        assert secret.lower().encode() not in at.raw.lower()
        wrong = [attributes(s) for s in at.named(ROOT) if attributes(s)["http.response.status_code"] == 404]
        assert [w["error.type"] for w in wrong] == ["model_not_found"]
        assert "gen_ai.request.model" not in wrong[0]


async def test_failures_of_the_service_are_kept_and_mistakes_of_clients_are_not(tmp_path: Path) -> None:
    prefill, decode = Telling("p", "prefill"), TokenWorker("d", "decode")
    async with traced(tmp_path, prefill, decode, tracing_sampling_ratio=0, max_attempts=1) as (stack, at):
        assert (await stack.http.post("/v1/completions", json=ASK | {"model": "no"})).status_code == 404
        decode.faults = [Fault("decode", "die", after_tokens=3, times=9)]
        answer = await stack.http.post("/v1/completions", json=ASK | {"stream": True})
        assert answer.status_code == 200
        (root,) = await at.until(ROOT)
        told = attributes(root)
        assert (told["http.response.status_code"], told["error.type"], root.status.code) == (503, "workers_failed", 2)
        assert told["disagg.kept"] == "error"
        assert [attributes(s)["error.type"] for s in at.named("disagg.attempt")] == ["worker_lost"]


async def test_a_client_that_leaves_ends_its_trace(tmp_path: Path) -> None:
    prefill, decode = Telling("p", "prefill"), TokenWorker("d", "decode")
    async with traced(tmp_path, prefill, decode) as (stack, at):
        decode.hold.clear()
        asking = asyncio.create_task(stack.http.post("/v1/completions", json=ASK | {"stream": True}))
        await stack.until(lambda: decode.running > 0 and stack.router.active > 0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        (root,) = await at.until(ROOT)
        told = attributes(root)
        assert (told["http.response.status_code"], told["error.type"], root.status.code) == (499, "499", 0)
        assert within(at, within(at, root)["attempt"]).keys() >= {"reserve"}


async def test_choices_have_attempts_of_their_own(tmp_path: Path) -> None:
    async with traced(tmp_path) as (stack, at):
        assert (await stack.http.post("/v1/completions", json=ASK | {"n": 3})).status_code == 200
        (root,) = await at.until(ROOT)
        assert sorted(attributes(s)["disagg.choice"] for s in at.named("disagg.attempt")) == [0, 1, 2]
        assert len(at.named("disagg.admit")) == len(at.named("disagg.tokenize")) == 1
        told = attributes(root)
        assert (told["gen_ai.request.choice.count"], told["gen_ai.usage.output_tokens"]) == (3, 24)
        assert (await stack.http.post("/v1/completions", json=ASK | {"n": 16})).status_code == 200
        await at.until(ROOT, 2)
        assert len(at.named("disagg.attempt")) == 3 + 8


async def test_a_dead_collector_costs_no_request(tmp_path: Path) -> None:
    async with traced(tmp_path, tracing_queue_spans=16) as (stack, at):
        at.silent = True
        for _ in range(12):
            assert (await stack.complete()).status_code == 200
        lost = 'disagg_router_trace_spans_dropped_total{reason="queue_full"}'
        assert await stack.metric(lost) >= 8
        tracer = stack.router.tracer
        assert tracer is not None
        assert tracer.exporter._queue.spans <= 16


async def test_a_trace_that_cannot_be_made_costs_no_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("as told")

    monkeypatch.setattr(request_spans, "spans_of", fails)
    async with traced(tmp_path) as (stack, _):
        assert (await stack.http.post("/v1/completions", json=ASK)).status_code == 200
        answer = await stack.http.post("/v1/completions", json=ASK | {"stream": True})
        assert answer.text.rstrip().endswith("[DONE]")
        await stack.until(lambda: stack.router.active == 0)
        assert await stack.metric('disagg_router_requests_total{code="200",endpoint="completions"}') == 2


async def test_without_a_collector_nothing_is_traced(tmp_path: Path) -> None:
    async with Stack(tmp_path, TokenWorker("p", "prefill"), TokenWorker("d", "decode")) as stack:
        answer = await stack.complete()
        assert answer.status_code == 200
        assert "x-disagg-trace-id" not in answer.headers
        assert stack.router.tracer is None


def test_a_router_without_a_collector_loads_no_messages_of_otlp() -> None:
    code = "import sys, disagg_router.main; sys.exit({'google.protobuf', 'opentelemetry'} & set(sys.modules) != set())"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
