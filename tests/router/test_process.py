"""Tests of the router as a process.

It starts from its environment, drains on SIGTERM, and reports what is wrong with its settings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path

import httpx
import pytest
from tests.fakes.token_worker import KEY, TokenWorker, expected_text
from tests.ports import free_port
from tests.router.stack import MODEL, tokens_of


async def start(folder: Path, files: int = 0, **environment: str) -> asyncio.subprocess.Process:
    """Start a router, which may have at most so many files, if not 0."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (files // 2, files))

    inherited = {k: v for k, v in os.environ.items() if not k.startswith("DISAGG_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "disagg_router", cwd=folder, stderr=asyncio.subprocess.PIPE,
        env=inherited | {"PYTHONPATH": str(Path(__file__).parents[2] / "worker")} | environment,
        preexec_fn=limit if files else None,
    )  # fmt: skip


@pytest.mark.slow
async def test_on_sigterm_it_turns_not_ready_finishes_its_streams_and_exits_0(tmp_path: Path) -> None:
    workers = [TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")]
    await asyncio.gather(*(w.start() for w in workers))
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "m.json").write_text(json.dumps({"workers": [{"name": w.name, "url": w.url} for w in workers]}))
    port = free_port()
    process = await start(
        tmp_path, DISAGG_MODEL_NAME=MODEL, DISAGG_CLUSTER_KEY_FILE=str(tmp_path / "key"), DISAGG_PORT=str(port),
        DISAGG_MEMBERSHIP=f"file://{tmp_path / 'm.json'}",
    )  # fmt: skip
    assert process.stderr is not None
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            # The log reports when the pair is ready; reading on keeps the pipe empty.
            while b"handshake p0 -> d0:" not in await process.stderr.readline():
                pass
            rest = asyncio.create_task(process.stderr.read())
            assert (await http.get("/readyz")).status_code == 200
            workers[1].hold.clear()
            body = {"model": MODEL, "prompt": "hello", "max_tokens": 9, "seed": 5, "stream": True}
            async with http.stream("POST", "/v1/completions", json=body) as answer:
                lines = answer.aiter_lines()
                text = json.loads((await anext(lines)).removeprefix("data: "))["choices"][0]["text"]
                process.send_signal(signal.SIGTERM)
                while (await http.get("/readyz")).status_code == 200:
                    await asyncio.sleep(0.02)
                assert (await http.get("/healthz")).status_code == 200
                workers[1].hold.set()
                events = [line.removeprefix("data: ") async for line in lines if line]
            text += "".join(json.loads(e)["choices"][0]["text"] for e in events[:-1])
            assert (text, events[-1]) == (expected_text(5, tokens_of("hello"), 9), "[DONE]")
            assert await process.wait() == 0
            log = (await rest).decode()
        assert "path=remote prompt_tokens=5 tokens=9" in log
        assert "hello" not in log
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await asyncio.gather(*(w.stop() for w in workers))


@pytest.mark.slow
async def test_strangers_take_no_files_that_somebody_needs(tmp_path: Path) -> None:
    """More of them than the process may have files, with half a head each."""
    (tmp_path / "key").write_bytes(KEY)
    (tmp_path / "m.json").write_text(json.dumps({"workers": []}))
    port = free_port()
    process = await start(
        tmp_path, files=300, DISAGG_MODEL_NAME=MODEL, DISAGG_CLUSTER_KEY_FILE=str(tmp_path / "key"),
        DISAGG_PORT=str(port), DISAGG_MEMBERSHIP=f"file://{tmp_path / 'm.json'}",
    )  # fmt: skip
    held: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
    try:
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            while not held:
                with contextlib.suppress(OSError):
                    held.append(await asyncio.open_connection("127.0.0.1", port))
                await asyncio.sleep(0.05)
            for _ in range(400):
                held.append(await asyncio.open_connection("127.0.0.1", port))
                held[-1][1].write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\n")
            for _ in range(20):
                assert (await http.get("/healthz", headers={"connection": "close"})).status_code == 200
        process.send_signal(signal.SIGINT)
        _, log = await asyncio.wait_for(process.communicate(), 60)
        assert process.returncode == 0
        assert b"open files" not in log
    finally:
        for _, writer in held:
            writer.close()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def test_wrong_settings_are_named_and_end_the_process(tmp_path: Path) -> None:
    process = await start(tmp_path, DISAGG_MODEL_NAME=MODEL, DISAGG_MEMBERSHIP="nowhere")
    _, stderr = await process.communicate()
    assert process.returncode == 1
    assert b"DISAGG_MEMBERSHIP" in stderr
    assert b"DISAGG_CLUSTER_KEY_FILE" in stderr
    assert b"Traceback" not in stderr
