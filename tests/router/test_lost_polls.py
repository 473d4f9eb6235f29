"""Tests of workers that answer no poll, and have no heartbeats by which they could be judged."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.fakes.token_worker import Fault, TokenWorker, expected_text
from tests.router.stack import Stack, tokens_of

N = 12
WANTED = expected_text(5, tokens_of("hello"), N)


async def test_a_worker_that_answers_no_poll_loses_its_streams_and_holds_up_no_other_poll(tmp_path: Path) -> None:
    """Without it, the stream would stand still for 60 s."""
    prefill, slow, other = TokenWorker("p0", "prefill"), TokenWorker("d0", "decode"), TokenWorker("d1", "decode")
    async with Stack(tmp_path, prefill, slow, other) as stack:
        slow.faults = [Fault("decode", "stall", after_tokens=4)]
        other.faults = [Fault("decode", "status", status=429, code="no_capacity", times=1)]
        asked = asyncio.create_task(stack.complete(max_tokens=N))
        await stack.until(lambda: slow.running == 1)
        slow.tells.clear()
        other.revision = "r2"
        known = stack.router.table.workers
        await stack.until(lambda: any(w.revision == "r2" for w in known()))
        assert "d0" in {w.name for w in known()}  # It is asked still.
        answer = (await asked).json()
        assert answer["choices"][0]["text"] == WANTED
        assert answer["disagg"]["attempts"] == 2
        assert await stack.metric('disagg_router_workers_given_up_total{reason="worker_lost"}') == 1.0
        assert {w.name for w in known()} == {"p0", "d1"}
        slow.tells.set()
        await stack.until(lambda: len(known()) == 3)
