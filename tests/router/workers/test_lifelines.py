"""Tests of streams that end when their worker is given up, and of jobs that wait for nobody."""

from __future__ import annotations

import asyncio

import pytest
from tests.router.workers.infos import worker

from disagg_router.errors import AttemptFailed
from disagg_router.workers.lifelines import Lifelines
from disagg_router.workers.rounds import Rounds


async def test_all_streams_of_a_worker_end_and_no_others() -> None:
    lines, never = Lifelines(), asyncio.Event()

    async def stream(name: str) -> str:
        try:
            async with lines.stream(worker(name, "decode")):
                await never.wait()
        except AttemptFailed as failure:
            return f"{failure.reason} {failure.blame[0]}: {failure}"
        return ""

    tasks = [asyncio.create_task(stream(name)) for name in ("a", "a", "b")]
    await asyncio.sleep(0)
    assert lines.cut("a", "is silent", "worker_silent") == 2
    assert lines.cut("nobody", "is silent", "worker_silent") == 0
    incarnation = worker("a", "decode").incarnation
    assert await asyncio.gather(*tasks[:2]) == [f"worker_silent {incarnation}: is silent"] * 2
    assert not tasks[2].done()
    assert lines.cut("a", "is silent", "worker_silent") == 0  # They are not there any more.
    tasks[2].cancel()
    await asyncio.gather(tasks[2], return_exceptions=True)


async def test_streams_of_which_something_came_since_go_on() -> None:
    lines = Lifelines()
    async with lines.stream(worker("a", "decode")) as line:
        since_s = asyncio.get_running_loop().time() + 1.0
        line.heard_s = since_s + 1.0
        assert lines.cut("a", "is lost", "worker_lost", since_s) == 0

    async def older() -> None:
        async with lines.stream(worker("a", "decode")):
            assert lines.cut("a", "is lost", "worker_lost", since_s) == 1
            await asyncio.sleep(60)

    with pytest.raises(AttemptFailed):
        await older()


async def test_a_timeout_of_the_stream_itself_is_no_cut() -> None:
    with pytest.raises(TimeoutError):
        async with Lifelines().stream(worker("a", "decode")):
            raise TimeoutError


async def test_a_slow_job_holds_up_no_other_one_and_is_not_begun_twice() -> None:
    rounds, go_on, begun = Rounds(), asyncio.Event(), list[str]()

    async def slow() -> None:
        begun.append("slow")
        await go_on.wait()

    async def quick() -> None:
        begun.append("quick")

    jobs = {"slow": slow, "quick": quick}
    assert not await rounds.go(jobs, 0.01)
    assert not await rounds.go(jobs, 0.01)
    assert begun == ["slow", "quick", "quick"]
    go_on.set()
    assert await rounds.go(jobs, 60.0)
    assert begun == ["slow", "quick", "quick", "quick"]
    go_on.clear()
    await rounds.go(jobs, 0.0)
    await rounds.close()

    async def fails() -> None:
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        await rounds.go({"fails": fails}, 60.0)
    assert await rounds.go({}, 60.0)
