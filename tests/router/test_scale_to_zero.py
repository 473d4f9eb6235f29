"""Tests of a router whose deployment is at zero: it lists, holds, asks for workers, and answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fakes.token_worker import BEARER
from tests.router.model_change import Fleet, answer_of, made, team
from tests.router.stack import Stack

from disagg_wire.protocol import DEMAND_PATH


def demand(stack: Stack, cursor: str = "", wait_s: float = 10, **more: Any) -> asyncio.Task[httpx.Response]:
    """Begin a poll of the operator's."""
    params = {"cursor": cursor, "wait_s": wait_s, **more}
    return asyncio.create_task(
        stack.http.get(DEMAND_PATH, params=params, headers={"authorization": BEARER}, timeout=30)
    )


async def listed(stack: Stack) -> list[str]:
    return [m["id"] for m in (await stack.http.get("/v1/models")).json()["data"]]


async def polled(stack: Stack, n: int = 1) -> None:
    await stack.until(lambda: stack.router.queue.hold.demand._polls == n)


async def test_a_router_that_starts_at_zero_holds_asks_and_answers(tmp_path: Path) -> None:
    async with Stack(tmp_path, hold_max_wait_s=30, queue_max_wait_s=0.2, lora_adapters='["sql"]') as stack:
        assert await listed(stack) == ["m", "sql"]
        assert (await stack.http.get("/readyz")).status_code == 200
        poll = demand(stack)
        await polled(stack)
        asked = [asyncio.create_task(stack.complete()) for _ in range(4)]
        told = (await poll).json()
        assert (told["wanted"], told["held"] > 0) == (True, True)
        await stack.until(lambda: stack.router.queue.hold.waiting == 4)
        assert (await demand(stack, told["cursor"])).json()["held"] == 4
        assert await stack.metric("disagg_router_holding_requests") == 4
        assert (await stack.state())["idle_s"] == 0
        # Longer than the queue would have kept them.
        await asyncio.sleep(0.25)
        await Fleet(stack).come(*team("m", "a", 1))
        answers = [(await task).json() for task in asked]
        assert {a["choices"][0]["text"] for a in answers} == {answer_of("a", "hello", 5, 8)}
        await stack.until(lambda: stack.router.active == 0)
        assert (await stack.state())["idle_s"] >= 0
        assert await stack.metric("disagg_router_holding_requests") == 0


async def test_a_pool_that_comes_first_keeps_nobody_from_waiting_for_the_other(tmp_path: Path) -> None:
    async with Stack(tmp_path, hold_max_wait_s=30, queue_max_wait_s=0.2) as stack:
        fleet = Fleet(stack)
        early = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.hold.waiting == 1)
        await _alone(stack, fleet)
        late = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.waiting("decode") == 2)
        await asyncio.sleep(0.25)
        await fleet.come(made("decode", "m", "a"))
        for task in (early, late):
            assert (await task).json()["choices"][0]["text"] == answer_of("a", "hello", 5, 8)


async def _alone(stack: Stack, fleet: Fleet) -> None:
    """Let a prefill worker come for which there is no decode worker."""
    worker = made("prefill", "m", "a")
    await worker.start()
    stack.workers.append(worker)
    fleet.listed.append(worker)
    fleet._publish()
    await stack.until(lambda: bool(stack.router.table.catalogue.offers))


async def test_a_model_that_went_to_zero_is_listed_and_comes_back(tmp_path: Path) -> None:
    pool = team("m", "a", 1)
    async with Stack(tmp_path, *pool, hold_max_wait_s=30, queue_max_wait_s=0.2, name_memory_s=0) as stack:
        fleet = Fleet(stack)
        stack.workers.clear()  # so that none is listed once these are gone
        await fleet.go(*pool)
        await fleet.gone()
        assert await listed(stack) == ["m"]
        told = (await demand(stack, wait_s=0)).json()
        assert (told["wanted"], told["held"]) == (False, 0)
        # What can be refused without workers wakes nobody.
        assert (await stack.complete(model="other")).status_code == 404
        assert (await stack.complete(max_tokens=10**6)).status_code == 400
        assert (await demand(stack, told["cursor"], 0)).json()["wanted"] is False
        poll = demand(stack, told["cursor"])
        await polled(stack)
        asked = asyncio.create_task(stack.complete())
        assert (await poll).json()["wanted"] is True
        await asyncio.sleep(0.25)
        await fleet.come(*team("m", "a", 1))
        assert (await asked).json()["choices"][0]["text"] == answer_of("a", "hello", 5, 8)


async def test_workers_that_have_just_ended_make_no_unknown_name_wake(tmp_path: Path) -> None:
    """They are still listed for a moment, and have said long ago which model they serve."""
    pool = team("m", "a", 1)
    async with Stack(tmp_path, *pool, hold_max_wait_s=30) as stack:
        table, stack.workers = stack.router.table, []
        await asyncio.gather(*(worker.stop() for worker in pool))
        await stack.until(lambda: not table.workers())
        assert len(table._membership.members()) == 2
        told = (await demand(stack, wait_s=0)).json()
        assert (await stack.complete(model="other")).status_code == 404
        assert (await demand(stack, told["cursor"], 0)).json()["wanted"] is False
        asked = asyncio.create_task(stack.complete())
        assert (await demand(stack, told["cursor"])).json()["wanted"] is True
        asked.cancel()


async def test_while_a_worker_is_still_to_say_what_it_serves_an_unknown_name_waits_and_wakes_nobody(
    tmp_path: Path,
) -> None:
    pool, mute = team("m", "a", 1), made("prefill", "n", "b")
    async with Stack(tmp_path, *pool, hold_max_wait_s=30) as stack:
        fleet = Fleet(stack)
        stack.workers.clear()
        fleet.listed.append(mute)  # it has not been started
        await fleet.go(*pool)
        await stack.until(lambda: not stack.router.table.names._all_told)
        cursor = (await demand(stack, wait_s=0)).json()["cursor"]
        asked = asyncio.create_task(stack.complete(model="other"))
        await stack.until(lambda: stack.router.queue.hold.waiting == 1)
        told = (await demand(stack, cursor, 0)).json()
        assert (told["wanted"], told["held"], (await stack.state())["held"]) == (False, 0, 0)
        known = asyncio.create_task(stack.complete())
        assert (await demand(stack, cursor)).json()["wanted"] is True
        for task in (asked, known):
            task.cancel()


@pytest.mark.parametrize("state", ["draining", "ready"])
async def test_the_new_name_of_a_model_is_held_and_wakes_while_workers_of_the_old_one_are_there(
    tmp_path: Path, state: str
) -> None:
    """Old workers drain on the way to zero, or were called back by the request."""
    old = team("old", "a", 1)
    async with Stack(tmp_path, *old, hold_max_wait_s=30) as stack:
        for worker in old:
            worker.state = state
        await stack.until(lambda: {w.state for w in stack.router.table.workers()} == {state})
        poll = demand(stack)
        await polled(stack)
        asked = asyncio.create_task(stack.complete())
        assert (await poll).json()["wanted"] is True
        assert (await stack.complete(model="other")).status_code == 404
        await Fleet(stack).come(*team("m", "b", 1))
        assert (await asked).json()["choices"][0]["text"] == answer_of("b", "hello", 5, 8)


async def test_too_many_are_told_when_workers_are_due(tmp_path: Path) -> None:
    async with Stack(tmp_path, hold_max_wait_s=30, queue_max_depth=1) as stack:
        await demand(stack, wait_s=0, cold_start_s=83.2)
        waiting = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.hold.waiting == 1)
        refused = await stack.complete()
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "starting")
        assert 60 < int(refused.headers["retry-after"]) <= 84
        waiting.cancel()


async def test_a_request_that_came_and_went_is_a_fact(tmp_path: Path) -> None:
    """Also where nobody may wait at all."""
    async with Stack(tmp_path, queue_max_depth=0) as stack:
        cursor = (await demand(stack, wait_s=0)).json()["cursor"]
        assert (await stack.complete()).status_code == 503
        told = (await demand(stack, cursor)).json()
        assert (told["wanted"], told["held"]) == (True, 0)
        # It is told once.
        assert (await demand(stack, told["cursor"], 0)).json()["wanted"] is False


async def test_the_longest_wait_ends_with_an_answer(tmp_path: Path) -> None:
    async with Stack(tmp_path, hold_max_wait_s=0.2, queue_max_wait_s=10) as stack:
        answer = await stack.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
        assert int(answer.headers["retry-after"]) >= 5


@pytest.mark.parametrize("bearer", ["", "Bearer x"])
async def test_a_poll_needs_the_key(tmp_path: Path, bearer: str) -> None:
    async with Stack(tmp_path) as stack:
        answer = await stack.http.get(DEMAND_PATH, headers={"authorization": bearer})
        assert answer.status_code == 401


async def test_a_poll_that_makes_no_sense_is_answered_at_once(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        for wait_s in ("-1", "inf", "x", ""):
            params = {"wait_s": wait_s, "cold_start_s": "nan", "cursor": "x" * 5000}
            answer = await stack.http.get(DEMAND_PATH, params=params, headers={"authorization": BEARER})
            assert (answer.status_code, answer.json()["wanted"]) == (200, False)
        assert stack.router.queue.hold.cold_start_s is None


async def test_a_poll_whose_operator_is_gone_is_not_kept(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        poll = demand(stack)
        await polled(stack)
        poll.cancel()
        await polled(stack, 0)


async def test_the_idle_time_begins_at_the_end_of_the_last_stream(tmp_path: Path) -> None:
    pool = team("m", "a", 1)
    async with Stack(tmp_path, *pool) as stack:
        stack.router._idle_since_s -= 1000
        assert (await stack.state())["idle_s"] >= 1000
        pool[1].hold.clear()
        streams = [asyncio.create_task(stack.complete(stream=True)) for _ in range(2)]
        await stack.until(lambda: stack.router.active == 2)
        assert (await stack.state())["idle_s"] == 0
        pool[1].hold.set()
        await asyncio.gather(*streams)
        await stack.until(lambda: stack.router.active == 0)
        assert 0 <= (await stack.state())["idle_s"] < 1000


async def test_a_request_that_is_refused_by_its_name_or_key_does_not_end_the_idle_time(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("right\n")
    async with Stack(tmp_path, *team("m", "a", 1), api_keys_file=str(keys)) as stack:
        stack.router._idle_since_s -= 1000
        for key, name, status in (("wrong", "m", 401), ("right", "unknown", 404)):
            body = {"model": name, "prompt": "hello", "max_tokens": 1}
            headers = {"authorization": f"Bearer {key}"}
            assert (await stack.http.post("/v1/completions", json=body, headers=headers)).status_code == status
        assert (await stack.state())["idle_s"] >= 1000
