"""Role flips: the worker that is chosen, the moment, and no other decision that undoes the flip."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from tests.integration.apiserver import free_port

from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.policy import role_moves
from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.autoscaling.role_changer import RoleChanger
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target
from disagg_operator.autoscaling.signals.metrics_page import parse
from disagg_operator.autoscaling.signals.samples import Sample, role_of

KEY = ("ns", "chat")


def decisions(prefill: tuple[int, int], decode: tuple[int, int]) -> dict[str, Decision]:
    return {
        name: Decision(a, b, "why", "Forecast", None, 0.0)
        for name, (a, b) in (("prefill", prefill), ("decode", decode))
    }


@pytest.mark.parametrize(
    ("flip", "prefill", "decode", "expected"),
    [
        pytest.param(1, (3, 2), (1, 2), ("prefill", "decode", 1), id="one gives, the other takes"),
        pytest.param(-2, (1, 3), (4, 2), ("decode", "prefill", 2), id="the other way, two"),
        pytest.param(2, (3, 2), (1, 4), ("prefill", "decode", 1), id="no more than is given"),
        pytest.param(1, (3, 3), (1, 2), None, id="scaling down was held"),
        pytest.param(1, (3, 2), (2, 2), None, id="nobody takes"),
        pytest.param(0, (3, 2), (1, 2), None, id="not asked for"),
    ],
)
def test_what_moves(flip: int, prefill: tuple[int, int], decode: tuple[int, int], expected: Any) -> None:
    assert role_moves.wanted(Targets(prefill[1], decode[1], flip=flip), decisions(prefill, decode)) == expected


def test_a_pool_that_is_not_scaled_never_gives_or_takes() -> None:
    found = decisions((3, 2), (1, 2))
    del found["prefill"]
    assert role_moves.wanted(Targets(2, 2, flip=1), found) is None


def test_while_a_worker_moves_nobody_deletes_a_pod_or_starts_one_for_it() -> None:
    left = role_moves.without(decisions((3, 1), (1, 4)), "prefill", "decode", 1)
    assert (left["prefill"].to, left["decode"].to) == (2, 3)
    done = role_moves.without(decisions((3, 2), (1, 2)), "prefill", "decode", 1)
    assert (done["prefill"].to, done["decode"].to) == (3, 1)
    # The policy may have changed its decision meanwhile: growth of the giving pool is not part of
    # the role flip.
    changed = role_moves.without(decisions((3, 5), (4, 2)), "prefill", "decode", 1)
    assert (changed["prefill"].to, changed["decode"].to) == (5, 2)


def test_the_idlest_goes_and_an_unknown_load_is_a_high_one() -> None:
    assert role_moves.idlest({"a": 3.0, "b": 1.0}, ["a", "b", "c"]) == "b"
    assert role_moves.idlest({}, ["b", "a"]) == "a"
    assert role_moves.idlest({}, []) is None


def test_a_worker_says_its_role_on_its_page() -> None:
    assert role_of(parse('disagg_worker_info{role="decode",model="m"} 1\n', 0.0)) == "decode"
    assert role_of(Sample(0.0, {"disagg_worker_kv_tokens": 1.0})) is None
    assert role_of(None) is None


@contextlib.asynccontextmanager
async def worker(answers: list[int]) -> AsyncIterator[tuple[Target, list[Any]]]:
    """Serve a worker that answers with these statuses, and then with the last one for ever."""
    asked: list[Any] = []

    async def role(request: web.Request) -> web.Response:
        asked.append((request.headers.get("Authorization"), await request.json()))
        return web.json_response({}, status=answers[min(len(asked), len(answers)) - 1])

    app = web.Application()
    app.add_routes([web.post("/internal/v1/role", role)])
    runner, port = web.AppRunner(app), free_port()
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield Target("uid", "127.0.0.1", port, bearer="secret"), asked
    finally:
        await runner.cleanup()


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
