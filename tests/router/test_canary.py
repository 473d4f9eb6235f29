"""A new revision that is tried, on real sockets: its part of the requests, and what is counted."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.token_worker import Fault, TokenWorker
from tests.router.stack import Stack

HALF = "50.rnew"


def workers(revision: str, pairs: int, **changes: Any) -> list[TokenWorker]:
    out = []
    for role, i in itertools.product(("prefill", "decode"), range(pairs)):
        worker = TokenWorker(f"{role}-{revision}-{i}", role, compat=revision, **changes)
        worker.revision = revision
        out.append(worker)
    return out


def trying(folder: Path, *listed: TokenWorker, **options: Any) -> Stack:
    """Return a router for which all requests to these workers count, also the first ones."""
    return Stack(folder, *listed, **{"canary_warm_up_s": 0.0, **options})


def pools(*listed: TokenWorker) -> dict[str, str]:
    return {w.name: w.role for w in listed}


async def tried(stack: Stack, *listed: TokenWorker, word: str = HALF) -> None:
    stack.publish(*listed, pools=pools(*listed or stack.workers), canary=word)

    def heard() -> bool:
        canary = stack.router.table.canary
        return not word if canary is None else {w.text() for w in canary.words.values()} == {word}

    await stack.until(heard)


async def ask(stack: Stack, count: int, **fields: Any) -> Counter[str]:
    """Send requests and return which revision each one's answer came from, or its status."""
    gate = asyncio.Semaphore(8)

    async def one(number: int) -> str:
        async with gate:
            answer = await stack.complete(prompt=f"hello {number}", max_tokens=2, **fields)
        if not answer.is_success:
            return str(answer.status_code)
        trace = answer.json()["disagg"]  # one token that is left needs no decode worker
        return str((trace["decode"] or trace["prefill"])["pod"].split("-")[1])

    return Counter(await asyncio.gather(*map(one, range(count))))


async def counted(stack: Stack) -> tuple[int, int, int, int]:
    rows = (await stack.state())["canary"]["minutes"]
    new, new_met, old, old_met = (sum(row[i] for row in rows) for i in range(1, 5))
    return new, new_met, old, old_met


async def test_the_part_of_the_requests_does_not_follow_the_ready_pairs(tmp_path: Path) -> None:
    async with trying(tmp_path, *workers("old", 4), *workers("new", 1)) as stack:
        await tried(stack)
        found = await ask(stack, 120)
        # Five standard deviations around a half; by the pairs it would be a fifth.
        assert found["new"] == pytest.approx(60, abs=28)
        assert set(found) == {"new", "old"}
        assert await counted(stack) == (found["new"], found["new"], found["old"], found["old"])
        await tried(stack, word="0.xnew")
        assert set(await ask(stack, 15)) == {"old"}
        # Without a word it is by the pairs, as ever.
        await tried(stack, word="")
        assert (await stack.state())["canary"] is None
        assert set(await ask(stack, 60)) == {"new", "old"}


async def test_a_new_pair_that_dies_leaves_its_part_to_the_old_ones_and_no_request_fails(tmp_path: Path) -> None:
    new = workers("new", 1)
    async with trying(tmp_path, *workers("old", 4), *new) as stack:
        await tried(stack)
        for worker in new:
            worker.token_interval_s = 0.01
        asking = asyncio.create_task(ask(stack, 80))
        await stack.until(lambda: any(w.running for w in new))
        for worker in new:
            await worker.stop()
        found = await asking
        assert set(found) <= {"old", "new"}
        assert found["old"] > 40
        assert (await ask(stack, 20)) == {"old": 20}
        new_ended, new_met, *_ = await counted(stack)
        assert new_met < new_ended  # what it lost counts against it, although others have answered


async def test_other_weights_under_the_same_name_get_their_part(tmp_path: Path) -> None:
    new = workers("new", 1, digest="b" * 20)
    async with trying(tmp_path, *workers("old", 3), *new) as stack:
        await tried(stack)
        found = await ask(stack, 60)
        assert found["new"] == pytest.approx(30, abs=20)
        for worker in new:
            await worker.stop()
        assert (await ask(stack, 20)) == {"old": 20}


async def test_failures_count_against_the_workers_that_failed_first(tmp_path: Path) -> None:
    new = workers("new", 1)
    async with trying(tmp_path, *workers("old", 2), *new, max_attempts=1) as stack:
        await tried(stack, word="50.rnew")
        new[1].faults = [Fault("decode", "error", times=10_000)]
        stack.router.table.breaker.first_s = 0.0
        found = await ask(stack, 40)
        assert 3 < found["503"] < 37
        assert await counted(stack) == (found["503"], 0, found["old"], found["old"])


@pytest.mark.parametrize(("code", "missed"), [("ticket_expired", True), ("draining", False)])
async def test_what_workers_took_and_did_not_begin_in_time_counts_against_them(
    tmp_path: Path, code: str, missed: bool
) -> None:
    new = workers("new", 1)
    async with trying(tmp_path, *workers("old", 2), *new) as stack:
        await tried(stack)
        new[1].faults = [Fault("decode", "error", times=10_000, code=code)]
        assert sum((await ask(stack, 30)).values()) == 30
        new_ended, new_met, old_ended, old_met = await counted(stack)
        assert (new_met < new_ended) is missed
        assert (old_met, new_ended + old_ended) == (old_ended, 30)


async def test_all_choices_of_an_answer_are_one_request(tmp_path: Path) -> None:
    async with trying(tmp_path, *workers("old", 2), *workers("new", 1)) as stack:
        await tried(stack)
        found = await ask(stack, 12, n=3)
        assert await counted(stack) == (found["new"], found["new"], found["old"], found["old"])
        assert sum(found.values()) == 12


async def test_one_choice_that_fails_is_a_request_that_was_not_kept(tmp_path: Path) -> None:
    new = workers("new", 1)
    async with trying(tmp_path, *new, max_attempts=2) as stack:
        await tried(stack)
        new[1].faults = [Fault("decode", "error", times=1)]
        await ask(stack, 1, n=3)
        assert await counted(stack) == (1, 0, 0, 0)


async def test_requests_that_are_late_have_not_met_the_objectives(tmp_path: Path) -> None:
    new = workers("new", 1)
    async with trying(tmp_path, *workers("old", 2), *new) as stack:
        await tried(stack, word="50.rnew.p1000")
        new[1].token_interval_s = 0.05
        found = await ask(stack, 16)
        new_ended, new_met, *_ = await counted(stack)
        assert (new_ended, new_met) == (found["new"], 0)


async def test_a_client_that_leaves_counts_only_if_it_was_late_by_then(tmp_path: Path) -> None:
    new = workers("new", 1)
    async with trying(tmp_path, *new) as stack:
        for word, expected in (("50.rnew", 0), ("50.rnew.t1000", 1)):
            await tried(stack, word=word)
            new[1].hold.clear()
            new[0].hold.clear()
            asking = asyncio.create_task(stack.complete(max_tokens=4))
            await stack.until(lambda: any(w.running for w in new))
            await asyncio.sleep(0.01)
            asking.cancel()
            await stack.until(lambda: stack.router.active == 0)
            for worker in new:
                worker.hold.set()
            assert (await counted(stack))[:2] == (expected, 0)


@pytest.mark.parametrize(("word", "met"), [("50.rnew", 1), ("50.rnew.t1000", 0)])
async def test_what_hangs_counts_as_missed_as_soon_as_it_is_late(tmp_path: Path, word: str, met: int) -> None:
    new = workers("new", 1)
    async with trying(tmp_path, *new) as stack:
        await tried(stack, word=word)
        for worker in new:
            worker.hold.clear()
        asking = asyncio.create_task(stack.complete(max_tokens=4))
        await stack.until(lambda: all(w.running for w in new))
        await asyncio.sleep(0.01)
        assert await counted(stack) == (1, met, 0, 0)
        told = (await stack.state())["canary"]
        assert told["through"] < max(told["minutes"][0][0], int(time.time()) // 60)
        for worker in new:
            worker.hold.set()
        assert (await asking).is_success
        assert await counted(stack) == (1, met, 0, 0)


async def test_the_first_requests_of_a_worker_tell_nothing(tmp_path: Path) -> None:
    new, old = workers("new", 1), workers("old", 1)
    async with trying(tmp_path, *new, *old, canary_warm_up_s=3600.0) as stack:
        await tried(stack)
        new[1].faults = [Fault("decode", "error", times=3)]
        stack.router.table.breaker.first_s = 0.0
        assert sum((await ask(stack, 10)).values()) == 10
        assert await counted(stack) == (0, 0, 0, 0)
        # Later ones count, also those of a process that has restarted.
        stack.router.table.warm_up_s = 1e-9
        new[1].incarnation = "another"
        await stack.until(lambda: any(w.incarnation == "another" for w in stack.router.table.workers()))
        found = await ask(stack, 10)
        assert await counted(stack) == (found["new"], found["new"], found["old"], found["old"])


async def test_what_a_worker_refuses_because_of_the_client_tells_nothing(tmp_path: Path) -> None:
    new = workers("new", 1)
    async with trying(tmp_path, *new, max_attempts=1) as stack:
        await tried(stack, word="50.rnew.t1")
        new[1].faults = [Fault("decode", "error", times=1, code="invalid_request")]
        assert set(await ask(stack, 1)) == {"400"}
        assert await counted(stack) == (0, 0, 0, 0)
