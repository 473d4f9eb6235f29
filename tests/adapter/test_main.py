"""Tests of the adapter's process: its start, its end on SIGTERM, and what it says when it cannot
serve.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from benchmarks.adapter.__main__ import adapter_variables
from benchmarks.adapter.scripted_engine import app
from tests.adapter.rig import listening, make_adapter, until
from tests.fakes.adapter_engine import FakeEngine
from tests.ports import free_port

from disagg_adapter import main
from disagg_adapter.engines.contract import NotReady, Unusable

REPO = Path(__file__).parents[2]


def environment(folder: Path, engine_port: int, **changes: str) -> dict[str, str]:
    (folder / "key").write_text("k" * 32)
    if not (folder / "config.json").exists():
        (folder / "config.json").write_text(json.dumps({"vocab_size": 1 << 20}))
        (folder / "tokenizer.json").write_text("{}")
    ours = {name: value for name, value in os.environ.items() if not name.startswith("DISAGG_")}
    path = os.pathsep.join(str(REPO / name) for name in ("worker", "."))
    return ours | adapter_variables(folder, engine_port) | changes | {"PYTHONPATH": path}


@asynccontextmanager
async def adapter(folder: Path, engine_port: int, **changes: str) -> AsyncIterator[Any]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "disagg_adapter", env=environment(folder, engine_port, **changes), stderr=-1
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def ended(process: Any) -> tuple[int, str]:
    _, said = await asyncio.wait_for(process.communicate(), 30)
    return process.returncode, said.decode()


async def test_it_serves_and_on_sigterm_ends_with_status_0(tmp_path: Path) -> None:
    port = free_port()
    async with listening(app()) as (_, engine_port), adapter(tmp_path, engine_port, DISAGG_PORT=str(port)) as process:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as http:
            answer = None
            while answer is None or answer.status_code != 200:
                try:
                    answer = await http.get("/readyz")
                except httpx.TransportError:
                    await asyncio.sleep(0.02)
            waits = asyncio.create_task(http.get("/drained"))
            assert (await http.get("/livez")).text == "ok\n"
            process.send_signal(signal.SIGTERM)
            assert (await waits).text == "drained\n"
        status, said = await ended(process)
        assert (status, "draining" in said) == (0, True), said


@pytest.mark.parametrize(
    ("config", "words"),
    [("{}", "config.json: vocab_size: is missing"), ('{"vocab_size": 5, "num_hidden_layers": "x"}', "cannot serve")],
)
async def test_files_that_cannot_be_used_end_it_with_a_word(tmp_path: Path, config: str, words: str) -> None:
    """The second is no error that was thought of; the process must not hang on it."""
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "tokenizer.json").write_text("{}")
    async with adapter(tmp_path, 1, DISAGG_PORT=str(free_port())) as process:
        status, said = await ended(process)
        assert status == 1
        assert words in said


@pytest.mark.parametrize("variable", ["DISAGG_PORT", "DISAGG_KV_PORT"])
async def test_a_port_that_is_taken_is_named(tmp_path: Path, variable: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"DISAGG_PORT": str(free_port()), variable: str(taken.getsockname()[1])}
        async with adapter(tmp_path, 1, **ports) as process:
            status, said = await ended(process)
            assert status == 1
            assert "DISAGG_PORT" in said
            assert "address already in use" in said.lower()


async def test_a_wrong_variable_ends_it_at_once(tmp_path: Path) -> None:
    async with adapter(tmp_path, 1, DISAGG_ENGINE="other") as process:
        status, said = await ended(process)
        assert (status, said.strip()) == (
            1, "disagg_adapter: DISAGG_ENGINE: Value error, must be one of vllm, sglang, lmdeploy"
        )  # fmt: skip


class _Stopped:
    """A process that notes that it shall end."""

    def __init__(self) -> None:
        self.stopped = asyncio.Event()

    def stop_soon(self) -> None:
        self.stopped.set()


async def test_a_server_for_hand_overs_that_ends_ends_the_process(tmp_path: Path) -> None:
    class Ends:
        should_exit = False

        async def serve(self, sockets: Any) -> None:
            raise RuntimeError("odd")

    one, process = make_adapter("both", tmp_path, FakeEngine()), _Stopped()
    with pytest.raises(RuntimeError):
        await main._serve_handovers(Ends(), None, one, process)  # type: ignore[arg-type]
    assert process.stopped.is_set()
    assert one.failed == "the server for hand-overs has ended"


async def test_a_watch_that_ends_ends_the_process(tmp_path: Path) -> None:
    environment(tmp_path, 1)
    one, process = make_adapter("both", tmp_path, FakeEngine()), _Stopped()

    async def breaks() -> None:
        raise RuntimeError("odd")

    one.monitor.run = breaks  # type: ignore[method-assign]
    await main._start(one, process)  # type: ignore[arg-type]
    assert process.stopped.is_set()
    assert one.failed == "RuntimeError('odd')"


async def test_files_are_read_when_the_engine_has_downloaded_all_of_them(tmp_path: Path) -> None:
    """Workers that read some of them would have other digests, and never be a pair."""
    engine = FakeEngine(fault=NotReady("loading"))
    one = make_adapter("both", tmp_path, engine, model_uri="hf://org/m", model_files=tmp_path)
    one.files = None
    snapshot = tmp_path / "models--org--m" / "snapshots" / "abc"
    (tmp_path / "models--org--m" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--m" / "refs" / "main").write_text("abc")
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({"vocab_size": 5}))
    finding = asyncio.create_task(main._find_files(one))
    await until(lambda: one.monitor.health.waits_for == "loading")
    assert not finding.done()
    (snapshot / "tokenizer.json").write_text("{}")
    (snapshot / "generation_config.json").write_text(json.dumps({"eos_token_id": 4}))
    engine.fault = Unusable("UnknownEngineVersion", "9.9")
    await asyncio.wait_for(finding, 10)
    assert one.files is not None
    assert one.files.eos_token_ids == (4,)
