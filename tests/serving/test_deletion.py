"""A deployment is deleted under load: its processes get SIGTERM together, and nothing fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.ports import free_port
from tests.serving.stack import REPO, WAIT_S, router, workers
from tests.worker.oracle import MODEL

from disagg_router.openai.app import create_app
from disagg_wire.protocol import DRAIN_PATH

pytestmark = pytest.mark.slow
_REQUESTS = 12


@contextlib.asynccontextmanager
async def router_process(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Run a router in a process of its own until it serves pairs; yields it and its URL."""
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(REPO / "worker"),
        "DISAGG_MODEL_NAME": MODEL.name,
        "DISAGG_CLUSTER_KEY_FILE": str(folder / "key"),
        "DISAGG_MEMBERSHIP": f"file://{folder}/workers.json",
        "DISAGG_PORT": str(port),
        "DISAGG_HOST": "127.0.0.1",
    }
    with (folder / "router.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "disagg_router", env=environment, stdout=log, stderr=log
        )
    try:
        async with asyncio.timeout(WAIT_S):
            while b"handshake prefill-0 -> decode-1:" not in (folder / "router.log").read_bytes():
                assert process.returncode is None
                await asyncio.sleep(0.05)
        yield process, f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def test_what_a_router_has_accepted_is_answered_although_all_get_sigterm_at_once(tmp_path: Path) -> None:
    """Some requests run when the processes are stopped, and the rest waits in the router."""
    async with (
        workers(tmp_path, ["prefill", "decode"], max_running="2", max_waiting="1") as processes,
        router_process(tmp_path) as (router, url),
        httpx.AsyncClient(base_url=url, trust_env=False, timeout=WAIT_S) as http,
    ):
        begun = asyncio.Event()

        async def ask(number: int) -> tuple[int, int]:
            body = {"model": MODEL.name, "prompt": f"request {number}", "max_tokens": 150, "seed": number,
                    "temperature": 1.0, "min_tokens": 150, "stream": True}  # fmt: skip
            tokens = 0
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                async for line in answer.aiter_lines():
                    begun.set()
                    if line.startswith("data: {"):
                        event = json.loads(line.removeprefix("data: "))
                        assert "error" not in event, event
                        tokens += 1
                return answer.status_code, tokens

        asked = [asyncio.create_task(ask(number)) for number in range(_REQUESTS)]
        await begun.wait()
        for process in (*processes.values(), router):
            process.send_signal(signal.SIGTERM)
        answers = await asyncio.gather(*asked)
        assert [status for status, _ in answers] == [200] * _REQUESTS
        assert min(tokens for _, tokens in answers) > 1
        async with asyncio.timeout(30):
            assert [await p.wait() for p in (router, *processes.values())] == [0, 0, 0]


async def test_workers_on_notice_serve_what_a_router_holds_when_all_are_deleted(tmp_path: Path) -> None:
    """They are on their way to zero, and a request has just come."""
    async with (
        workers(tmp_path, ["prefill", "decode"]) as processes,
        router(tmp_path, poll_interval_s="0.1", hold_max_wait_s="60") as front,
        httpx.AsyncClient(
            transport=httpx.ASGITransport(create_app(front)), base_url="http://router", timeout=WAIT_S
        ) as http,
    ):
        listed = [member["url"] for member in json.loads((tmp_path / "workers.json").read_text())["workers"]]
        for url in listed:
            await front.client.post(url, DRAIN_PATH, {"lease_s": 60.0})
        needed, ask, all_needed = set[str](), front.client.info, asyncio.Event()

        async def info(url: str, *, needs: bool) -> dict[str, Any]:
            found = await ask(url, needs=needs)
            needed.update([url] if needs else [])
            if needed == set(listed):
                all_needed.set()
            return found

        front.client.info = info  # type: ignore[method-assign]
        async with asyncio.timeout(WAIT_S):
            while {w.state for w in front.table.workers()} != {"draining"}:
                await asyncio.sleep(0.05)
            body = {"model": MODEL.name, "prompt": "hello", "max_tokens": 4, "min_tokens": 4}
            asked = asyncio.create_task(http.post("/v1/completions", json=body))
            await all_needed.wait()
            assert front.queue.hold.waiting == 1
            for process in processes.values():
                process.send_signal(signal.SIGTERM)
            front.end()
            assert (await asked).status_code == 200
