"""Tests of requests that fail because the engine has ended: by then, nothing more is taken."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.adapter.rig import PROMPT, body, pair, running
from tests.fakes.adapter_engine import FakeEngine

from disagg_adapter.engines.contract import EngineFault, NotReady
from disagg_wire import codes
from disagg_wire.engine_metrics.readings import Readings


def _goes(engine: FakeEngine) -> None:
    """Let the next request fail because the engine ends, which takes a while to tell."""

    async def breaks() -> None:
        engine.fault = NotReady("it starts")
        engine.read = refused  # type: ignore[method-assign]
        raise EngineFault(codes.INTERNAL, "the engine's stream broke off")

    async def refused() -> Readings:
        await asyncio.sleep(0.2)
        raise EngineFault(codes.INTERNAL, "refused", is_gone=True)

    engine.read_gate.enter = breaks  # type: ignore[method-assign]


# Nobody looks of its own accord.
_NEVER: dict[str, Any] = {"poll_interval_s": 60.0, "probe_after_s": 3600.0}


async def test_when_the_router_hears_of_a_failure_an_engine_that_is_gone_takes_nothing_more(tmp_path: Path) -> None:
    """Else the next attempts fail on it, too, until the adapter looks of its own accord."""
    async with running("both", tmp_path, **_NEVER) as one:
        _goes(one.engine)
        lines = await one.lines("decode", body(PROMPT) | {"mode": "local"})
        assert (lines[-1]["type"], one.adapter.serving) == ("error", False)
        await one.empty()


async def test_nor_does_it_when_prefill_is_the_first_to_tell(tmp_path: Path) -> None:
    async with pair(tmp_path, **_NEVER) as both:
        _goes(both.decode.engine)
        request = body(PROMPT) | {"mode": "remote"}
        async with both.decode.call("decode", request) as events:
            ticket = (await anext(events))["ticket"]
            async with both.prefill.call("prefill", body(PROMPT) | {"ticket": ticket}) as others:
                heard = [asyncio.ensure_future(anext(events)), asyncio.ensure_future(anext(others))]
                done, _ = await asyncio.wait(heard, return_when=asyncio.FIRST_COMPLETED)
                assert {task.result()["type"] for task in done} == {"error"}
                assert not both.decode.adapter.serving
                await asyncio.wait(heard)
        assert (await both.decode.refused("decode", request))[:2] == (503, codes.STARTING)
        await both.empty()
