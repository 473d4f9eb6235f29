"""Tests of what the router's metrics say of answers that end badly, over real sockets."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from tests.fakes.token_worker import Fault, TokenWorker
from tests.router.stack import Stack

ASK = {"model": "m", "prompt": [5, 6, 7], "max_tokens": 8, "seed": 5, "temperature": 0}
OUTCOME = 'disagg_router_generations_total{outcome="%s"}'
CODE = 'disagg_router_requests_total{code="%s",endpoint="completions"}'
MISSED = 'disagg_router_objective_requests_total{objective="ttft",within="false"}'


def pair() -> tuple[TokenWorker, TokenWorker]:
    return TokenWorker("p", "prefill"), TokenWorker("d", "decode")


async def counted(stack: Stack, line: str, value: float = 1) -> None:
    """Wait until a request that has ended for its client has ended for the router as well."""
    async with asyncio.timeout(20):
        while await stack.metric(line) < value:
            await asyncio.sleep(0.01)


async def stage_seconds(stack: Stack) -> tuple[float, float]:
    """Return the sum of the stages until the first token, and that of the times of first tokens."""
    text = (await stack.http.get("/metrics")).text
    stages = re.findall(r'^disagg_router_stage_seconds_sum\{stage="(\w+)"\} (\S+)', text, re.MULTILINE)
    after = ("transfer", "exposed_transfer", "decode")
    return sum(float(s) for name, s in stages if name not in after), await stack.metric(
        "disagg_router_ttft_seconds_sum"
    )


async def test_a_stream_that_breaks_after_its_first_token_is_no_success(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, max_attempts=1) as stack:
        decode.faults = [Fault("decode", "die", after_tokens=3, times=99)]
        answer = await stack.http.post("/v1/completions", json=ASK | {"stream": True})
        assert answer.status_code == 200
        assert '"error"' in answer.text.splitlines()[-2]
        await counted(stack, OUTCOME % "failed_after_first")
        assert await stack.metric(CODE % "200") == 0
        assert await stack.metric(CODE % "503") == 1
        assert await stack.metric(OUTCOME % "completed") == 0
        assert await stack.metric("disagg_router_request_seconds_count") == 1


async def test_a_whole_stream_and_its_stages(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair(), objective_ttft_s=30) as stack:
        assert (await stack.http.post("/v1/completions", json=ASK | {"stream": True, "n": 2})).status_code == 200
        await counted(stack, OUTCOME % "completed", 2)
        assert await stack.metric(CODE % "200") == 1
        stages_s, ttft_s = await stage_seconds(stack)
        assert stages_s == pytest.approx(ttft_s, abs=1e-6)
        assert await stack.metric('disagg_router_stage_seconds_count{stage="prefill"}') == 2
        assert await stack.metric("disagg_router_handover_seconds_count") == 2
        assert await stack.metric("disagg_router_longest_gap_seconds_count") == 2
        assert await stack.metric('disagg_router_objective_seconds{objective="ttft"}') == 30


async def test_a_first_token_is_observed_while_its_stream_runs(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.hold.clear()
        try:
            async with stack.http.stream("POST", "/v1/completions", json=ASK | {"stream": True}) as answer:
                await anext(answer.aiter_lines())
                assert await stack.metric("disagg_router_ttft_seconds_count") == 1
        finally:
            decode.hold.set()
        await counted(stack, OUTCOME % "left_after_first")
        assert await stack.metric(CODE % "499") == 1


async def test_who_leaves_after_the_first_token_was_due_has_missed_it(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, objective_ttft_s=0.05) as stack:
        prefill.hold.clear()
        handshakes = len(prefill.seen.bodies)
        asking = asyncio.create_task(stack.http.post("/v1/completions", json=ASK | {"stream": True}))
        await stack.until(lambda: len(prefill.seen.bodies) > handshakes)
        await asyncio.sleep(0.1)  # the objective passes
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await counted(stack, OUTCOME % "left_before_first")
        prefill.hold.set()
        assert await stack.metric(MISSED) == 1
        assert await stack.metric("disagg_router_ttft_seconds_count") == 1
        assert await stack.metric("disagg_router_ttft_seconds_sum") > 0.05


async def test_requests_that_are_shed_fail_or_are_wrong(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, max_attempts=1, queue_max_depth=1, queue_max_wait_s=0.3) as stack:
        assert (await stack.complete(max_tokens=-1)).status_code == 400
        assert await stack.metric("disagg_router_request_seconds_count") == 0
        prefill.faults = [Fault("prefill", "status", status=400, code="invalid_request")]
        assert (await stack.complete()).status_code == 400
        assert await stack.metric('disagg_router_failovers_total{reason="invalid_request"}') == 0
        text = (await stack.http.get("/metrics")).text
        assert not re.findall(r"disagg_router_generations_total\{.*\} [1-9]", text)
        prefill.faults = [Fault("prefill", "die_early")]
        assert (await stack.complete()).status_code == 503
        await counted(stack, OUTCOME % "failed_before_first")
        decode.slots = 0
        answers = await asyncio.gather(*(stack.complete() for _ in range(3)))
        assert {a.status_code for a in answers} == {429, 503}
        await counted(stack, OUTCOME % "shed")
        assert await stack.metric(OUTCOME % "shed") == sum(a.status_code == 429 for a in answers)


async def test_what_takes_minutes_has_buckets_and_series_have_no_creation_times(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        await stack.complete()
        text = (await stack.http.get("/metrics")).text
        assert 'disagg_router_request_seconds_bucket{le="600.0"} 1.0' in text
        assert "_created" not in text
        assert "process_resident_memory_bytes" in text
        asked = {"accept": "application/openmetrics-text; version=1.0.0"}
        answer = await stack.http.get("/metrics", headers=asked)
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.text.rstrip().endswith("# EOF")
