"""A worker is asked to change its role until it has, or refuses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from tests.connections import serving

from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.autoscaling.role_changer import RoleChanger
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target

KEY = ("ns", "chat")


@contextlib.asynccontextmanager
async def worker(answers: list[int]) -> AsyncIterator[tuple[Target, list[Any]]]:
    """Serve a worker that answers with these statuses, and then with the last one for ever."""
    asked: list[Any] = []

    async def role(request: web.Request) -> web.Response:
        asked.append((request.headers.get("Authorization"), await request.json()))
        return web.json_response({}, status=answers[min(len(asked), len(answers)) - 1])

    async with serving(web.post("/internal/v1/role", role)) as port:
        yield Target("uid", "127.0.0.1", port, bearer="secret"), asked


@pytest.mark.parametrize(
    ("answers", "changed"), [([200], True), ([202, 409, 200], True), ([404], False), ([401], False)]
)
async def test_a_move_asks_until_it_is_done_and_gives_up_where_it_is_refused(answers: list[int], changed: bool) -> None:
    woken, door = asyncio.Event(), DirectDoor()
    flipper = RoleChanger(door, lambda _: woken.set(), asyncio.get_running_loop().time)
    entry, flip = Live("uid"), Flip("p-1", "prefill", "decode", 0.0)
    try:
        async with worker(answers) as (target, asked):
            flipper.begin(KEY, entry, flip, target)
            assert entry.flip is flip
            assert flipper.busy_with(KEY, "p-1")
            await asyncio.wait_for(woken.wait(), 10)
        assert (flip.changed, entry.flip) == (changed, flip if changed else None)
        assert asked[0] == ("Bearer secret", {"role": "decode", "deadline_s": 60.0})
    finally:
        await flipper.close()
        await door.close()


async def test_an_operator_that_does_not_lead_any_more_asks_nobody() -> None:
    woken, door = asyncio.Event(), DirectDoor()
    flipper = RoleChanger(door, lambda _: woken.set(), asyncio.get_running_loop().time, lambda: False)
    entry = Live("uid")
    try:
        async with worker([200]) as (target, asked):
            flipper.begin(KEY, entry, Flip("p-1", "prefill", "decode", 0.0), target)
            await asyncio.wait_for(woken.wait(), 10)
        assert (asked, entry.flip) == ([], None)
    finally:
        await flipper.close()
        await door.close()
