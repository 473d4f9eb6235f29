"""Tests of LMDeploy's module over several calls: one prompt at a time at prefill, and the pairs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.engines import player
from tests.adapter.engines.works import work
from tests.fakes.scripted_engine import ScriptedEngine, scripted

from disagg_adapter.engines import lmdeploy
from disagg_adapter.engines.contract import EngineFault, HandOver
from disagg_adapter.engines.lmdeploy import Lmdeploy

FOLDER = Path(__file__).parent / "conversations/lmdeploy"
CHAT = "/v1/chat/completions"


def step(method: str, path: str, answer: dict[str, Any], **body: Any) -> dict[str, Any]:
    return {"request": {"method": method, "path": path} | ({"body": body} if body else {}), "answer": answer}


def prefilled(block: int) -> dict[str, Any]:
    return step("POST", CHAT, {"json": {"cache_block_ids": [block], "remote_token_ids": [21]}}, with_cache=True)


STREAMED = {"events": [{"data": {"choices": [{"index": 0, "output_ids": [30], "finish_reason": "length"}]}}]}


@contextlib.asynccontextmanager
async def identified(
    name: str, monkeypatch: pytest.MonkeyPatch, *steps: dict[str, Any], lease_s: float = 60.0
) -> AsyncIterator[tuple[Lmdeploy, ScriptedEngine]]:
    """Run an engine that says of itself what the conversation `name` says, and then `steps`."""
    monkeypatch.setattr(lmdeploy, "TOO_LONG", 2048)
    async with scripted(FOLDER / f"{name}.jsonl") as peer:
        peer.header["options"]["lease_s"] = lease_s
        engine = player.engine_of(peer.header, peer.url)
        assert isinstance(engine, Lmdeploy)
        try:
            await engine.identify()
            peer.steps.extend(steps)
            yield engine, peer
            assert not peer.problems
        finally:
            await engine.close()


async def test_nothing_computes_at_prefill_until_decode_has_the_kv(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = (
        prefilled(7),
        step("GET", "/health", {"text": "{}"}),
        prefilled(8),
        step("POST", CHAT, STREAMED, stream=True),
    )
    async with identified("identify_prefill", monkeypatch, *steps) as (engine, peer):
        first = engine.prefill(work())
        handover = await anext(first)
        second, third = engine.prefill(work()), engine.generate(work())
        waiting = asyncio.ensure_future(anext(second))
        behind = asyncio.ensure_future(anext(third))
        # A probe computes nothing either: the next step that is taken is the look at the health.
        await engine.probe()
        assert not waiting.done()
        handover.taken()
        assert [h async for h in first] == []
        assert (await waiting).parameters["block_ids"] == [8]
        assert not behind.done()
        waiting.result().taken()
        assert [h async for h in second] == []
        assert (await behind).outputs[0].token == 30
        await third.aclose()
        await peer.finish()


async def test_a_hand_over_that_ends_early_keeps_the_others_out_for_its_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    async with identified("identify_prefill", monkeypatch, prefilled(7), prefilled(8), lease_s=0.05) as (engine, _):
        first = engine.prefill(work())
        await anext(first)
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        await first.aclose()
        second = engine.prefill(work())
        await anext(second)
        assert loop.time() - started_s >= 0.04
        await second.aclose()


async def test_nobody_waits_longer_than_the_lease_for_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    async with identified("identify_prefill", monkeypatch, prefilled(7), prefilled(8), lease_s=0.02) as (engine, _):
        for block in (7, 8):
            handovers = engine.prefill(work())
            assert (await anext(handovers)).parameters["block_ids"] == [block]
            assert [h async for h in handovers] == []


async def test_a_prompt_that_fails_lets_the_next_one_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = step("POST", CHAT, {"status": 500, "text": "Internal Server Error"})
    async with identified("identify_prefill", monkeypatch, broken, prefilled(8)) as (engine, _):
        with pytest.raises(EngineFault):
            await anext(engine.prefill(work()))
        handovers = engine.prefill(work())
        assert await anext(handovers)
        await handovers.aclose()


async def test_first_tokens_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    async with identified("decode", monkeypatch) as (engine, peer):
        parameters = peer.header["call"]["handover"]["parameters"]
        other = HandOver(parameters | {"token": 99}, 99)
        for handover, count in ((HandOver(parameters, 21), 0), (other, 1)):
            if count:
                peer.steps[-1]["request"]["body"]["migration_request"]["remote_token_id"] = 99
            request = player.work_of({})
            async with contextlib.aclosing(engine.decode(request, handover)) as deltas:
                assert [o.token async for d in deltas for o in d.outputs] == [21, 22, 2]
            assert engine.other_first_tokens == count
        await peer.finish()


async def test_a_restart_of_the_engine_forgets_its_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    async with identified("decode", monkeypatch) as (engine, peer):
        request, call = player.work_of({}), peer.header["call"]
        again, pairing, last = peer.steps[:6], peer.steps[6:11], peer.steps[-1]
        again[4] = step("GET", "/metrics", {"text": "process_start_time_seconds 1.79603e+09\n"})
        peer.steps[-1:] = [*again, *pairing, last]
        for restart in (True, False):
            async with contextlib.aclosing(engine.decode(request, HandOver(**call["handover"]))) as deltas:
                assert [d async for d in deltas]
            if restart:
                await engine.identify()
        await peer.finish()
