"""`disagg assess` reads a real vLLM that serves a load whose lengths and prompts are known."""

from __future__ import annotations

import asyncio
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmarks.engine import vllm_process
from benchmarks.engine.vllm_process import Vllm
from tests.router.stack import Stack

from disagg_wire.roles import BOTH

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]

WATCH_S, PHASE_S = 60, 5.0
STREAMS, STREAM_TOKENS = 4, 100
SHARED, OWN, LONG = 160, 20, 1400
_IDS = range(100, 1000)


async def streams(engine: Vllm, source: random.Random) -> None:
    """Ask for answers one after the other, without end; their prompts begin alike."""
    shared = list(_IDS)[:SHARED]
    while True:
        await engine.generate(shared + source.choices(_IDS, k=OWN), STREAM_TOKENS)


async def long_prompts(engine: Vllm, source: random.Random) -> None:
    """Ask with long prompts, one after the other, in every other phase."""
    clock = asyncio.get_running_loop().time
    while True:
        if clock() % (2 * PHASE_S) < PHASE_S:
            await engine.generate(source.choices(_IDS, k=LONG), 1)
        else:
            await asyncio.sleep(PHASE_S - clock() % PHASE_S)


async def assessed(engine: Vllm) -> dict[str, Any]:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).parent / "disagg", "assess", engine.url, "--for", f"{WATCH_S}s", "--model", "llama-3.1-8b",
        "--ttft", "5", "-o", "json", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, err = await asyncio.wait_for(process.communicate(), WATCH_S + 120)
    assert process.returncode == 0, err.decode()
    found: dict[str, Any] = json.loads(out)
    return found


async def passed_on(engine: Vllm, folder: Path) -> None:
    """Let a router pass a stream on to the engine, and count it."""
    folder.mkdir()
    async with Stack(folder, upstream_url=engine.url, objective_ttft_s=60, objective_tpot_s=10) as stack:
        options: dict[str, Any] = {"model": "m", "prompt": "import os\n", "max_tokens": 20, "temperature": 0}
        options["extra_body"] = {"ignore_eos": True}
        whole = await stack.openai.completions.create(**options)
        chunks = [c async for c in await stack.openai.completions.create(**options, stream=True)]
        assert "".join(c.choices[0].text for c in chunks) == whole.choices[0].text
        assert chunks[-1].choices[0].finish_reason == "length"
        words = '{backend="upstream",within="true"}'
        assert await stack.metric(f"disagg_router_split_requests_total{words}") == 1
        assert await stack.metric('disagg_router_split_tpot_seconds_count{backend="upstream"}') == 1


async def test_a_real_vllm_whose_prefill_disturbs_decode(tmp_path: Path) -> None:
    async with vllm_process.vllm(tmp_path, BOTH) as engine:
        await engine.wait_ready()
        source = random.Random(5)
        load = [asyncio.create_task(streams(engine, source)) for _ in range(STREAMS)]
        load.append(asyncio.create_task(long_prompts(engine, source)))
        try:
            found = await assessed(engine)
        finally:
            for task in load:
                task.cancel()
            await asyncio.gather(*load, return_exceptions=True)
        await passed_on(engine, tmp_path / "router")
    workload = found["workload"]
    assert (found["engine"], found["model"], found["today"]["workers"]) == ("vllm", "m", 1)
    assert workload["requests"] > 20
    assert SHARED + OWN < workload["prompt_tokens"]["mean"] < LONG
    assert workload["prompt_tokens"]["tail"] == {"low": 1000, "high": 2000}
    assert workload["answer_tokens"]["tail"] == {"low": 50, "high": 100}
    assert 0.02 < workload["cached_share"] < 0.9
    assert found["prefill_disturbs_decode"]["verdict"] == "yes"
