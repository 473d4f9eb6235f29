"""Tests of full pools: which requests wait, for how long, and what the others are told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.fakes.token_worker import TokenWorker, expected_text
from tests.router.stack import MODEL, Stack, tokens_of

from disagg_router.admission import waiting_queue


def pair() -> tuple[TokenWorker, TokenWorker]:
    return TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")


async def test_requests_wait_for_room_in_order_and_none_is_lost(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.slots, decode.token_interval_s = 2, 0.002
        done: list[int] = []

        async def one(seed: int) -> None:
            answer = (await stack.complete(max_tokens=6, seed=seed)).json()
            assert answer["choices"][0]["text"] == expected_text(seed, tokens_of("hello"), 6)
            done.append(seed)

        tasks = []
        for seed in range(12):
            tasks.append(asyncio.create_task(one(seed)))
            await stack.until(lambda n=seed: stack.router.active + len(done) == n + 1)
        await asyncio.gather(*tasks)
        # Two run at a time, so a request can be overtaken only by the one beside it. Requests that
        # are tokenized at the same moment, in threads, may also have changed places before they
        # reach the queue.
        assert all(abs(place - seed) <= 4 for place, seed in enumerate(done)), str(done)


@pytest.mark.parametrize("pool", ["decode", "prefill"])
async def test_who_waits_is_counted_for_the_pool_that_is_full(tmp_path: Path, pool: str) -> None:
    workers = dict(zip(("prefill", "decode"), pair(), strict=True))
    async with Stack(tmp_path, *workers.values()) as stack:
        workers[pool].slots = 0
        task = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.waiting(pool) == 1)
        assert await stack.metric(f'disagg_router_waiting_requests{{pool="{pool}"}}') == 1
        assert (await stack.state())["waiting"][pool] == 1
        workers[pool].slots = 64
        answer = (await task).json()
        assert answer["choices"][0]["text"] == expected_text(5, tokens_of("hello"), 8)
        assert answer["disagg"]["queue_s"] > 0
        assert (answer["disagg"]["attempts"], answer["disagg"]["path"]) == (1, "remote")


async def test_nobody_waits_for_room_longer_than_for_the_request(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, request_timeout_s=0.4, queue_max_wait_s=60) as stack:
        decode.slots = 0
        answer = await stack.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert stack.router.queue.waiting("decode") == 0


async def test_while_all_workers_restart_the_first_request_ever_waits_for_them(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        prefill.state = decode.state = "starting"
        await stack.until(lambda: all(w.state == "starting" for w in stack.router.table.workers()))
        asked = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        prefill.state = decode.state = "ready"
        assert (await asked).json()["choices"][0]["text"] == expected_text(5, tokens_of("hello"), 8)


async def test_a_full_queue_is_429_and_too_long_a_wait_503_both_with_retry_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prefill, decode = pair()
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 3600.0)  # one that tries leaves its place for that time
    async with Stack(tmp_path, prefill, decode, queue_max_depth=1, queue_max_wait_s=3.0) as stack:
        decode.slots = 0
        waiting = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        streamed = await stack.http.post("/v1/completions", json={"model": MODEL, "prompt": "x", "stream": True})
        refused = await stack.complete()
        for answer in (refused, streamed):
            assert (answer.status_code, answer.json()["error"]["code"], answer.headers["retry-after"]) == (
                429,
                "queue_full",
                "1",
            )
        late = await waiting
        assert (late.status_code, late.json()["error"]["code"], late.headers["retry-after"]) == (503, "overloaded", "5")


async def test_a_client_that_leaves_the_queue_is_no_longer_counted(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.slots = 0
        task = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await stack.until(lambda: stack.router.queue.waiting("decode") == 0)
        await stack.until(lambda: stack.router.active == 0)


async def test_a_draining_worker_gets_nothing_new_and_is_not_blamed(tmp_path: Path) -> None:
    prefill, decode = pair()
    second = TokenWorker("d1", "decode")
    async with Stack(tmp_path, prefill, decode, second) as stack:
        decode.state = "draining"
        decode.seen.bodies.clear()
        for _ in range(5):
            assert (await stack.complete()).json()["disagg"]["decode"]["pod"] == "d1"
        assert "disagg_router_failovers_total{" not in (await stack.http.get("/metrics")).text


async def test_load_goes_to_the_worker_with_less(tmp_path: Path) -> None:
    prefill, decode = pair()
    second = TokenWorker("d1", "decode")
    async with Stack(tmp_path, prefill, decode, second) as stack:
        decode.hold.clear()
        second.hold.clear()
        tasks = [asyncio.create_task(stack.complete()) for _ in range(8)]
        await stack.until(lambda: decode.running + second.running == 8)
        assert (decode.running, second.running) == (4, 4)
        decode.hold.set()
        second.hold.set()
        assert [a.status_code for a in await asyncio.gather(*tasks)] == [200] * 8
