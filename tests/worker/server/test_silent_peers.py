"""Tests of blocks that wait for KV which does not come, while a sequence that runs needs them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.protocol.client import body, tokens_of
from tests.worker.server.rig import prompt, running

SIZE = 16
# A ticket lives for much longer than the test may take.
LIFETIME_S = 3600.0
LIMIT_S = 60.0


async def test_a_sequence_that_runs_takes_the_blocks_of_a_peer_that_says_nothing(tiny: Path) -> None:
    """Two tickets that nobody uses hold all blocks but a few."""
    values = {"growth_reserve_tokens": SIZE, "ticket_lifetime_s": LIFETIME_S, "prefix_cache": False}
    async with running("both", tiny, kv_cache_bytes=1 << 20, max_model_len=4000, **values) as one:
        long = body(prompt(SIZE), max_new_tokens=20 * SIZE, stop_token_ids=[]) | {"mode": "local"}
        expected = tokens_of(await one.lines("decode", long))
        blocks = (one.load().blocks_total - 6) // 2
        held = body(prompt(blocks * SIZE - 1), max_new_tokens=1) | {"mode": "remote"}
        tickets = [asyncio.create_task(one.lines("decode", held)) for _ in range(2)]
        await one.until(lambda load: load.blocks_leased == 2 * blocks)
        async with asyncio.timeout(LIMIT_S):
            assert tokens_of(await one.lines("decode", long)) == expected
            (given_up,), (other,) = await asyncio.wait(tickets, return_when=asyncio.FIRST_COMPLETED)
        assert given_up.result()[-1]["code"] == "ticket_expired"
        assert one.load().blocks_leased == blocks  # No more is given up than is needed.
        other.cancel()
        await asyncio.gather(other, return_exceptions=True)
        await one.empty()
