"""Tests of the worker as a process: it starts, refuses to start, drains and ends."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.protocol.client import body, tokens_of
from tests.worker.server.process_rig import Process, process
from tests.worker.server.rig import prompt

pytestmark = pytest.mark.slow
REPO = Path(__file__).parents[3]


@pytest.mark.parametrize("shipped", [False, True], ids=["tiny", "stdlib-llama"])
async def test_two_processes_give_the_tokens_of_one(tiny: Path, shipped: bool) -> None:
    folder = REPO / "models" / "stdlib-llama" if shipped else tiny
    key: dict[str, Any] = {"cluster_key_file": tiny / "key"}
    async with (
        process(folder, "prefill", **key) as p,
        process(folder, "decode", **key) as d,
        process(folder, "both", **key) as one,
    ):
        await asyncio.gather(p.ready(), d.ready(), one.ready())
        asked: list[tuple[int, dict[str, Any]]] = [
            (1, {}),
            (16, {"temperature": 0.8}),
            (100, {"temperature": 0.8, "top_p": 0.9}),
            (700, {}),
        ]
        for n, sampling in asked:
            await _is_the_same(p, d, one, body(prompt(n), max_new_tokens=40, **sampling))


async def test_workers_of_two_ranks_each_give_the_tokens_of_one(tiny: Path) -> None:
    key: dict[str, Any] = {"cluster_key_file": tiny / "key", "dtype": "float32"}
    folder = REPO / "models" / "stdlib-llama"
    split = key | {"tensor_parallel": 2}
    async with (
        process(folder, "prefill", **split) as p,
        process(folder, "decode", **split) as d,
        process(folder, "both", **key) as one,
    ):
        await asyncio.gather(p.ready(), d.ready(), one.ready())
        for n in (1, 16, 100, 700):
            await _is_the_same(p, d, one, body(prompt(n), max_new_tokens=40, temperature=0.0))


async def test_a_worker_ends_with_its_rank(tiny: Path) -> None:
    async with process(tiny, tensor_parallel=2) as one:
        await one.ready()
        request = body(prompt(20), max_new_tokens=60000) | {"mode": "local"}
        async with one.http.stream("POST", "/internal/v1/decode", json=request) as answer:
            events = answer.aiter_lines()
            await anext(events)
            found = Path(f"/proc/{one.running.pid}/task").glob("*/children")
            children = " ".join(path.read_text() for path in found).split()
            (rank,) = (c for c in children if b"pulse_process" not in Path(f"/proc/{c}/cmdline").read_bytes())
            os.kill(int(rank), signal.SIGKILL)
            last = [_parse(line) async for line in events][-1]
        assert (last["type"], last["retryable"]) == ("error", True)
        async with asyncio.timeout(15):
            assert await one.running.wait() == 1
        assert "rank 1 of 2 was killed by SIGKILL" in await one.log()


async def _is_the_same(prefill: Process, decode: Process, one: Process, request: dict[str, Any]) -> None:
    """Check that a request over two workers, with a KV transfer, gives the tokens of one worker."""
    whole = await _lines(one, "decode", request | {"mode": "local"})
    async with decode.http.stream("POST", "/internal/v1/decode", json=request | {"mode": "remote"}) as answer:
        events = answer.aiter_lines()
        ticket = _parse(await anext(events))["ticket"]
        first = await _lines(prefill, "prefill", request | {"ticket": ticket})
        rest = [_parse(line) async for line in events]
    assert tokens_of(first + rest) == tokens_of(whole)
    assert len(tokens_of(whole)) == 40
    assert first[1]["kv_bytes"] == rest[0]["kv_bytes"] > 0


def _parse(line: str) -> dict[str, Any]:
    return dict(json.loads(line))


async def _lines(p: Process, role: str, request: dict[str, Any]) -> list[dict[str, Any]]:
    answer = await p.http.post(f"/internal/v1/{role}", json=request)
    assert answer.status_code == 200
    return [_parse(line) for line in answer.text.splitlines()]


async def test_a_drain_refuses_new_work_and_finishes_what_runs(tiny: Path) -> None:
    async with process(tiny) as one:
        await one.ready()
        request = body(prompt(20), max_new_tokens=2000) | {"mode": "local"}
        async with one.http.stream("POST", "/internal/v1/decode", json=request) as answer:
            events = answer.aiter_lines()
            for _ in range(3):
                await anext(events)
            one.running.send_signal(signal.SIGTERM)
            while (await one.http.get("/readyz")).status_code == 200:
                await asyncio.sleep(0.005)
            refused = await one.http.post("/internal/v1/decode", json=request)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            one.running.send_signal(signal.SIGTERM)  # A second signal changes nothing.
            rest = [_parse(line) async for line in events]
        assert rest[-1] == {"type": "end", "finish_reason": "length"}
        assert rest[-2]["index"] == 1999
        async with asyncio.timeout(30):
            assert await one.running.wait() == 0


async def test_what_does_not_finish_in_time_is_told_to_go_elsewhere(tiny: Path) -> None:
    async with process(tiny, drain_timeout_s=2) as one:
        await one.ready()
        request = body(prompt(20), max_new_tokens=60000) | {"mode": "local"}
        async with one.http.stream("POST", "/internal/v1/decode", json=request) as answer:
            events = answer.aiter_lines()
            await anext(events)
            one.running.send_signal(signal.SIGTERM)
            last = [_parse(line) async for line in events][-1]
        assert (last["type"], last["code"], last["retryable"]) == ("error", "draining", True)
        async with asyncio.timeout(30):
            assert await one.running.wait() == 0


async def test_a_stop_while_the_model_loads_is_obeyed_at_once(tiny: Path) -> None:
    """Name a KV interface that never appears: with status 1, the load would have failed first."""
    async with process(tiny, kv_interface="net9") as one:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                assert (await one.http.get("/internal/v1/info")).json()["state"] == "starting"
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline_s
                await asyncio.sleep(0.02)
        one.running.send_signal(signal.SIGTERM)
        async with asyncio.timeout(30):
            assert await one.running.wait() == 0


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"role": "router"}, "DISAGG_ROLE"),
        ({"cluster_key_file": "/no/such/file"}, "DISAGG_CLUSTER_KEY_FILE"),
        ({"host": "192.0.2.1"}, "DISAGG_HOST"),
        ({"model_uri": "file:///no/such/folder"}, "config.json"),
        ({"kv_host": "192.0.2.1"}, "192.0.2.1"),
        ({"kv_cache_bytes": 1 << 20}, "kv_cache_bytes"),
    ],
)
async def test_what_can_not_serve_ends_with_a_reason_and_no_traceback(
    tiny: Path, variables: dict[str, Any], message: str
) -> None:
    role = variables.get("role", "both")
    rest = {k: v for k, v in variables.items() if k != "role"}
    async with process(tiny, role, **rest) as one:
        log = await one.log()
        async with asyncio.timeout(30):
            assert await one.running.wait() == 1
        assert message in log
        assert "Traceback" not in log
