"""Tests of blocks that wait for KV which does not come, while a sequence that runs needs them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.worker.server.rig import body, prompt, running, tokens_of

SIZE = 16
# A ticket lives for much longer than the test may take.
LIFETIME_S = 3600.0
LIMIT_S = 60.0


async def test_a_sequence_that_runs_takes_the_blocks_of_a_peer_that_says_nothing(tiny: Path) -> None:
    """Two tickets that nobody uses hold all blocks that are free when it has begun."""
    values = {"growth_reserve_tokens": SIZE, "ticket_lifetime_s": LIFETIME_S, "prefix_cache": False}
    async with running("both", tiny, kv_cache_bytes=1 << 20, **values) as one:
        long = body(prompt(SIZE), max_new_tokens=20 * SIZE, stop_token_ids=[])
        expected = tokens_of(await one.lines("decode", long | {"mode": "local"}))
        async with one.call("decode", long | {"mode": "local"}) as events:
            begun = [await anext(events) for _ in range(3)]
            left = one.load().blocks_free - 1
            shares = (left // 2, left - left // 2)
            asked = [body(prompt(n * SIZE - 1), max_new_tokens=1) | {"mode": "remote"} for n in shares]
            tickets = [asyncio.create_task(one.lines("decode", one_asked)) for one_asked in asked]
            async with asyncio.timeout(LIMIT_S):
                rest = [line async for line in events]
                assert tokens_of([*begun, *rest]) == expected
                (newest, *_), pending = await asyncio.wait(tickets, return_when=asyncio.FIRST_COMPLETED)
            assert newest.result()[-1]["code"] == "ticket_expired"
            for ticket in pending:
                ticket.cancel()
            await asyncio.gather(*pending, return_exceptions=True)
        await one.empty()
