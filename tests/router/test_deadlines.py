"""Tests of requests with a deadline for their first token, over real sockets.

They check which request gets the room, and what workers are told.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from openai.types import Completion
from tests.fakes.token_worker import Fault, TokenWorker, expected_text
from tests.router.stack import MODEL, Stack, pair, tokens_of

from disagg_router.admission import waiting_queue

WITHIN = "first_token_within_s"
LONG = "x" * 400
# A long prompt takes 2 s alone, so its first token is due after 10 s.
DEADLINES: dict[str, Any] = {"objective_ttft_s": 0.2, "prefill_b_s_per_token": 0.005}


def bodies(worker: TokenWorker, prompt: str) -> list[dict[str, Any]]:
    return [b for b in worker.seen.bodies if b["tokens"][: len(prompt)] == tokens_of(prompt)]


@pytest.mark.parametrize(
    ("order", "served"),
    [("EarliestDeadline", ["first", LONG, "late"]), ("FirstComeFirstServed", ["first", "late", LONG])],
)
async def test_room_goes_to_who_can_be_on_time_before_who_is_late(
    tmp_path: Path, order: str, served: list[str]
) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, queue_order=order, **DEADLINES) as stack:
        decode.slots = 1
        decode.hold.clear()
        done: list[str] = []

        async def one(prompt: str) -> None:
            answer = (await stack.complete(prompt, max_tokens=3)).json()
            assert answer["choices"][0]["text"] == expected_text(5, tokens_of(prompt), 3)
            done.append(prompt)

        tasks = [asyncio.create_task(one("first"))]
        await stack.until(lambda: len(bodies(prefill, "first")) == 1)
        tasks.append(asyncio.create_task(one("late")))
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        late_s = time.monotonic() + 0.2
        await stack.until(lambda: time.monotonic() > late_s)
        tasks.append(asyncio.create_task(one(LONG)))
        await stack.until(lambda: stack.router.queue.waiting("decode") == 2)
        decode.hold.set()
        await asyncio.gather(*tasks)
        assert done == served
        told: dict[str, list[Any]] = {p: [b.get(WITHIN) for b in bodies(prefill, p)] for p in served}
        assert not [b for b in decode.seen.bodies if WITHIN in b]  # decode computes no prompt here
        assert not [b for b in prefill.seen.bodies if b["request_id"].startswith("handshake") and WITHIN in b]
    if order == "FirstComeFirstServed":
        assert told == {p: [None] for p in served}
        return
    assert told["first"][0] <= 0.2
    assert told["late"][0] < 0
    # It was refused first. The worker that it would have been sent to must not count as having it
    # cached since then.
    assert 5 < told[LONG][0] <= 10


async def test_in_a_burst_everybody_is_answered_and_those_that_leave_take_no_room_with_them(tmp_path: Path) -> None:
    """Send short and long prompts, most of which become late while they wait."""
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, **DEADLINES) as stack:
        decode.slots, decode.token_interval_s = 2, 0.005

        async def one(seed: int) -> bool:
            prompt = "y" * (7 + 131 * (seed % 3))
            answer = (await stack.complete(prompt, max_tokens=4, seed=seed)).json()
            return bool(answer["choices"][0]["text"] == expected_text(seed, tokens_of(prompt), 4))

        stay = [asyncio.create_task(one(seed)) for seed in range(30)]
        leave = [asyncio.create_task(one(seed)) for seed in range(30, 40)]
        await stack.until(lambda: stack.router.queue.waiting("decode") > 20)
        for task in leave:
            task.cancel()
        assert all(await asyncio.gather(*stay))
        await stack.until(lambda: stack.router.active == 0)
        assert stack.router.queue.idle


async def test_a_worker_too_old_to_know_of_it_is_not_told(tmp_path: Path) -> None:
    prefill, decode = pair()
    prefill.features = None
    async with Stack(tmp_path, prefill, decode, objective_ttft_s=5) as stack:
        answer = (await stack.complete()).json()
        assert (answer["disagg"]["path"], answer["disagg"]["attempts"]) == ("remote", 1)
        assert [WITHIN in b for b in bodies(prefill, "hello")] == [False]


@pytest.mark.parametrize("old", ["prefill", "decode", ""])
async def test_tickets_are_bound_where_both_workers_know_such_tickets(tmp_path: Path, old: str) -> None:
    prefill, decode = pair()
    for worker in (prefill, decode):
        if worker.role == old:
            worker.features = ["digest"]
    async with Stack(tmp_path, prefill, decode) as stack:
        answer = (await stack.complete()).json()
        assert (answer["disagg"]["path"], answer["disagg"]["attempts"]) == ("remote", 1)
        asked = [b.get("prefill_incarnation") for b in bodies(decode, "hello")]
        assert asked == [None if old else prefill.incarnation]
        assert all("prefill_incarnation" not in b for b in bodies(prefill, "hello"))


@pytest.mark.parametrize("old", ["prefill", "decode", ""])
async def test_decode_hears_how_prefill_reaches_it_where_both_know_of_that(tmp_path: Path, old: str) -> None:
    prefill, decode = pair()
    prefill.transports = {"rdma": "network"}
    for worker in (prefill, decode):
        if worker.role != old:
            worker.features = [*(worker.features or ()), "prefill_transports"]
    async with Stack(tmp_path, prefill, decode) as stack:
        answer = (await stack.complete()).json()
        assert (answer["disagg"]["path"], answer["disagg"]["attempts"]) == ("remote", 1)
        asked = [b.get("prefill_transports") for b in bodies(decode, "hello")]
        assert asked == [None if old else prefill.transports]


async def test_what_is_due_in_days_is_said_to_be_due_in_one(tmp_path: Path) -> None:
    """Workers refuse larger values."""
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, objective_ttft_s=5, prefill_b_s_per_token=60) as stack:
        assert (await stack.complete(LONG)).status_code == 200
        assert [b[WITHIN] for b in bodies(prefill, LONG)] == [86400.0]


async def test_a_prompt_that_should_be_cached_is_due_sooner(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, objective_ttft_s=5, prefill_b_s_per_token=0.005) as stack:
        for _ in range(2):
            assert (await stack.complete(LONG)).status_code == 200
        first, second = bodies(prefill, LONG)
        assert 5 < first[WITHIN] <= 10
        assert second[WITHIN] <= 5


@pytest.mark.parametrize(("role", "features"), [("decode", [WITHIN]), ("both", [WITHIN]), ("both", ["another"])])
async def test_a_worker_that_computes_the_prompt_itself_is_told(
    tmp_path: Path, role: str, features: list[str] | None
) -> None:
    worker = TokenWorker("w0", role)
    worker.features = features
    async with Stack(tmp_path, worker, objective_ttft_s=5) as stack:
        assert (await stack.complete()).json()["disagg"]["path"] == "local"
        (body,) = bodies(worker, "hello")
        assert (0 < body[WITHIN] <= 5) if features == [WITHIN] else WITHIN not in body


async def test_a_single_token_is_due_too_and_nothing_is_where_no_objective_is_set(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, objective_ttft_s=5) as stack:
        assert (await stack.complete(max_tokens=1)).json()["disagg"]["path"] == "prefill_only"
        assert [0 < b[WITHIN] <= 5 for b in bodies(prefill, "hello")] == [True]
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        assert (await stack.complete()).status_code == 200
        assert [WITHIN in b for b in bodies(prefill, "hello")] == [False]


async def test_who_has_tokens_out_is_due_no_more_and_goes_first(tmp_path: Path) -> None:
    """The client waits in the middle of an answer.

    The deadline of the other request is earlier than the deadline of this one was.
    """
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, objective_ttft_s=5, prefill_b_s_per_token=0.005) as stack:
        decode.slots = 1
        decode.hold.clear()
        done: list[str] = []

        async def rest(stream: AsyncIterator[Completion]) -> None:
            text = "".join([chunk.choices[0].text async for chunk in stream])
            assert text == expected_text(5, tokens_of(LONG), 6)
            done.append(LONG)

        async def one(prompt: str) -> None:
            assert (await stack.complete(prompt)).json()["choices"][0]["text"] == expected_text(5, tokens_of(prompt), 8)
            done.append(prompt)

        decode.faults = [Fault("decode", "error", after_tokens=1, code="draining")]
        stream = await stack.openai.completions.create(model=MODEL, prompt=LONG, max_tokens=6, seed=5, stream=True)
        tasks = [asyncio.create_task(rest(stream)), asyncio.create_task(one("waits"))]
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        decode.slots = 0
        decode.hold.set()
        await stack.until(lambda: stack.router.queue.waiting("decode") == 2)
        decode.slots = 1
        await asyncio.gather(*tasks)
        assert done == [LONG, "waits"]
        first, *again = bodies(prefill, LONG)
        assert 5 < first[WITHIN] <= 10
        assert [(WITHIN in b, len(b["tokens"]) > len(LONG)) for b in again] == [(False, True)]


@pytest.mark.parametrize(("role", "max_tokens"), [("both", 8), ("prefill", 1)])
async def test_a_worker_that_does_it_all_takes_the_next_as_soon_as_it_has_taken_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, role: str, max_tokens: int
) -> None:
    """There is no ticket to say so, but that is no reason to wait for the end of the answer."""
    monkeypatch.setattr(waiting_queue, "_RETRY_S", 60.0)
    worker = TokenWorker("w0", role)
    async with Stack(tmp_path, worker) as stack:
        worker.slots = 2
        worker.hold.clear()
        running = [asyncio.create_task(stack.complete(f"running {i}", max_tokens=max_tokens)) for i in range(2)]
        await stack.until(lambda: worker.running == 2)
        waiting = [asyncio.create_task(stack.complete(f"waiting {i}", max_tokens=max_tokens)) for i in range(2)]
        await stack.until(lambda: sum(stack.router.queue.waiting(p) for p in ("prefill", "decode")) == 2)
        for task in running:
            task.cancel()
        await stack.until(lambda: stack.router.queue.idle and worker.running == 2)
        worker.hold.set()
        assert [a.status_code for a in await asyncio.gather(*waiting)] == [200, 200]
