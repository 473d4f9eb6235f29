"""Tests of what the router tells real workers, over real sockets.

It tells them how full decode is and when a first token is due. The batches of prefill are small
while decode is full, and large again when it is empty.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from tests.protocol.client import KEY
from tests.router.stack import MODEL
from tests.worker.server.rig import Running, running
from tokenizers import Tokenizer

from disagg_router.main import server_of
from disagg_router.router import Router
from disagg_router.settings import Settings

FOLDER = Path(__file__).parents[2] / "models" / "stdlib-llama"
MOST, LEAST = 1024, 64


@asynccontextmanager
async def router(folder: Path, *workers: Running, **options: object) -> AsyncIterator[httpx.AsyncClient]:
    members = [{"name": w.worker.incarnation.split("/")[0], "url": str(w.http.base_url)} for w in workers]
    (folder / "members.json").write_text(json.dumps({"workers": members}))
    values = {
        "model_name": MODEL,
        "cluster_key_file": folder / "key",
        "membership": f"file://{folder / 'members.json'}",
        "poll_interval_s": 0.2,
    } | options
    made = Router(Settings.model_validate(values))
    server: uvicorn.Server = server_of(made)
    background = asyncio.create_task(made.run())
    with socket.create_server(("127.0.0.1", 0)) as sock:
        serving = asyncio.create_task(server.serve(sockets=[sock]))
        try:
            async with httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", trust_env=False, timeout=60
            ) as http:
                await until(lambda: made.handshakes.counts() == {"expected": 1, "healthy": 1})
                yield http
        finally:
            server.should_exit = True
            await serving
            background.cancel()
            await asyncio.gather(background, return_exceptions=True)
            await made.client.close()


async def until(condition: Callable[[], bool], limit_s: float = 20.0) -> float:
    """Wait for the condition, and return how long it took in seconds."""
    started_s = time.monotonic()
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)
    return time.monotonic() - started_s


@pytest.mark.slow
async def test_the_limit_falls_while_decode_is_full_and_recovers(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    common = {
        "model_uri": f"file://{FOLDER}",
        "model_name": MODEL,
        "max_batch_tokens": MOST,
        "saturating_tokens": LEAST,
    }
    async with AsyncExitStack() as stack:
        prefill = await stack.enter_async_context(running("prefill", tmp_path, **common))
        decode = await stack.enter_async_context(running("decode", tmp_path, max_running=4, **common))
        http = await stack.enter_async_context(router(tmp_path, prefill, decode))

        def limit() -> int:
            return prefill.load().prefill_limit_tokens

        await until(lambda: limit() == MOST)
        body = {"model": MODEL, "prompt": "import os", "stream": True, "ignore_eos": True, "max_tokens": 1900}
        async with AsyncExitStack() as streams:
            lines = []
            for _ in range(4):
                answer = await streams.enter_async_context(http.stream("POST", "/v1/completions", json=body))
                lines.append(answer.aiter_lines())
                await anext(lines[-1])
            assert decode.load().room.free_seats == 0
            fell_s = await until(lambda: limit() == LEAST)
            text = (await prefill.http.get("/metrics")).text
            assert f"disagg_prefill_batch_limit_tokens {float(LEAST)}" in text
        rose_s = await until(lambda: limit() == MOST)
        assert max(fell_s, rose_s) < 5
        tokenizer = Tokenizer.from_file(str(FOLDER / "tokenizer.json"))
        answer = await http.post("/v1/completions", json=body | {"stream": False, "max_tokens": 4})
        assert len(tokenizer.encode(answer.json()["choices"][0]["text"]).ids) > 0
        await prefill.empty()
        await decode.empty()


@pytest.mark.slow
@pytest.mark.parametrize(("order", "late"), [("EarliestDeadline", 1), ("FirstComeFirstServed", 0)])
async def test_a_real_worker_takes_what_the_router_says_of_the_first_token(
    tmp_path: Path, order: str, late: int
) -> None:
    """No worker can meet this objective, so it counts the prompt as late if it was told."""
    common = {"model_uri": f"file://{FOLDER}", "model_name": MODEL}
    (tmp_path / "key").write_bytes(KEY)
    async with AsyncExitStack() as stack:
        prefill = await stack.enter_async_context(running("prefill", tmp_path, **common))
        decode = await stack.enter_async_context(running("decode", tmp_path, **common))
        http = await stack.enter_async_context(
            router(tmp_path, prefill, decode, objective_ttft_s=1e-6, queue_order=order)
        )
        body = {"model": MODEL, "prompt": "import os", "ignore_eos": True, "max_tokens": 2}
        answer = await http.post("/v1/completions", json=body, headers={"x-disagg-trace": "1"})
        assert (answer.json()["disagg"]["path"], answer.json()["disagg"]["attempts"]) == ("remote", 1)
        await prefill.empty()
        assert prefill.load().late_prompts_total == late
        await decode.empty()
