"""Workers that are about to end serve what nobody else can."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.fakes.token_worker import TokenWorker, expected_text
from tests.router.model_change import Fleet, answer_of, team
from tests.router.stack import Stack, pair, tokens_of

from disagg_router.main import _drain, server_of
from disagg_router.router import Router
from disagg_router.settings import Settings
from disagg_router.workers.worker_info import Member, Membership
from disagg_wire import termination_log
from disagg_wire.drain_report import cut_of

TEXT = expected_text(5, tokens_of("hello"), 8)


def end(*workers: TokenWorker) -> None:
    """Let workers get SIGTERM."""
    for worker in workers:
        worker.state, worker.last_resort = "draining", True


@pytest.fixture
def left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the file in which a process leaves its last words."""
    file = tmp_path / "termination-log"
    file.touch()
    monkeypatch.setattr(termination_log, "PATH", file)
    return file


async def answered(stack: Stack) -> None:
    answer = await stack.complete()
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"] == TEXT


async def test_what_waits_in_the_router_is_served_by_workers_that_are_about_to_end(tmp_path: Path) -> None:
    prefill, decode = pair()
    decode.slots = 1
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.hold.clear()
        asked = [asyncio.create_task(stack.complete()) for _ in range(4)]
        await stack.until(lambda: stack.router.queue.waiting("decode") == 3)
        end(prefill, decode)
        stack.router.end()
        decode.hold.set()
        answers = await asyncio.gather(*asked)
        assert [a.status_code for a in answers] == [200] * 4
        await answered(stack)  # and a client that has not noticed yet


async def test_while_others_serve_a_worker_that_is_about_to_end_gets_nothing(tmp_path: Path) -> None:
    (p0, d0), (p1, d1) = pair(0), pair(1)
    async with Stack(tmp_path, p0, d0, p1, d1) as stack:
        end(p0, d0)
        d1.hold.clear()
        waits = asyncio.create_task(stack.complete())  # requests of this router do not make it needed
        await stack.until(lambda: {w.name for w in stack.router.table.workers() if w.state == "ready"} == {"p1", "d1"})
        before, seen = len(d0.asked_by), len(d0.seen.bodies)
        await stack.until(lambda: len(d0.asked_by) >= before + 3)
        assert set(d0.asked_by) == {"watches"}
        d1.hold.set()
        assert (await waits).status_code == 200
        await answered(stack)
        assert len(d0.seen.bodies) == seen
        states = {w["name"]: w["state"] for w in (await stack.state())["workers"]}
        assert states == {"p0": "draining", "d0": "draining", "p1": "ready", "d1": "ready"}


async def test_a_worker_is_kept_by_a_router_that_ends_or_has_requests_and_nobody_else(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:

        async def said() -> str:
            count = len(decode.asked_by)
            await stack.until(lambda: len(decode.asked_by) >= count + 3)
            return decode.asked_by[-1]

        assert await said() == "watches"
        end(prefill, decode)
        assert await said() == "watches"  # it has no requests
        decode.hold.clear()
        waits = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.active == 1)
        assert await said() == "needs"
        assert (await stack.state())["workers"][1]["state"] == "draining"
        decode.hold.set()
        assert (await waits).status_code == 200
        assert await said() == "watches"
        stack.router.end()
        assert await said() == "needs"


async def test_on_notice_a_worker_serves_nobody(tmp_path: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, queue_max_wait_s=0.3) as stack:
        decode.state = "draining"

        def seen(state: str) -> bool:
            return {w.name: w.state for w in stack.router.table.workers()}["d0"] == state

        await stack.until(lambda: seen("draining"))
        assert (await stack.complete()).status_code == 503
        decode.state = "ready"  # called back
        await stack.until(lambda: seen("ready"))
        await answered(stack)


class Listed(Membership):
    """A membership as in a cluster, whose slices a test deletes."""

    def __init__(self) -> None:
        self.synced = True
        self.here: dict[str, Member] = {}
        self.left: dict[str, Member] = {}
        self.gone = False

    @property
    def deserted(self) -> bool:
        return self.gone

    def members(self) -> dict[str, Member]:
        return self.here

    def leaving(self) -> dict[str, Member]:
        return self.left

    async def run(self) -> None:
        await asyncio.Event().wait()


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Listed:
    found = Listed()

    def membership_of(settings: Settings) -> Membership:
        return found

    monkeypatch.setattr("disagg_router.router.membership_of", membership_of)
    return found


async def test_workers_whose_service_is_gone_serve_until_they_have_ended(tmp_path: Path, listed: Listed) -> None:
    """When a deployment is deleted, its Services are gone before its pods have heard of it."""
    prefill, decode = pair()
    await asyncio.gather(prefill.start(), decode.start())
    listed.here = {w.name: Member(w.name, w.url, frozenset([w.role])) for w in (prefill, decode)}
    async with Stack(tmp_path) as stack:
        await stack.until(lambda: stack.healthy() == 1)
        listed.here, listed.left = {}, listed.here
        await stack.until(lambda: not stack.router.table._workers)
        await answered(stack)
        end(prefill, decode)
        await answered(stack)
        await asyncio.gather(prefill.stop(), decode.stop())
        await stack.until(lambda: not stack.router.table.workers())
        router: Router = stack.router
        assert router.table._leaving.workers() == []


async def test_workers_on_notice_are_needed_by_a_router_that_has_requests_and_nobody_else(tmp_path: Path) -> None:
    """A deployment that goes to zero is deleted: the last workers serve what is held."""
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, queue_max_wait_s=30) as stack:
        prefill.state = decode.state = "draining"
        await stack.until(lambda: {w.state for w in stack.router.table.workers()} == {"draining"})
        count = len(decode.asked_by)
        await stack.until(lambda: len(decode.asked_by) >= count + 3)
        assert decode.asked_by[-1] == "watches"  # nobody asks
        asked = asyncio.create_task(stack.complete())
        await stack.until(lambda: decode.asked_by[-1] == "needs" and prefill.asked_by[-1] == "needs")
        stack.router.end()
        end(prefill, decode)
        assert (await asked).json()["choices"][0]["text"] == TEXT


async def test_what_nobody_is_left_to_serve_is_told_to_come_back(tmp_path: Path, listed: Listed) -> None:
    """The deployment was deleted, and its last worker has ended."""
    async with Stack(tmp_path, hold_max_wait_s=60) as stack:
        asked = [asyncio.create_task(stack.complete()) for _ in range(2)]
        await stack.until(lambda: stack.router.queue.hold.waiting == 2)
        listed.gone = True
        assert not any(task.done() for task in asked)  # a router that stays waits for what may come
        stack.router.end()
        server = server_of(stack.router)
        await _drain(stack.router, server, 0.0)
        for answer in await asyncio.gather(*asked, stack.complete()):
            assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")
            assert int(answer.headers["retry-after"]) >= 5
        assert server.should_exit


async def test_a_router_that_ends_waits_for_workers_as_long_as_it_may_hold(tmp_path: Path) -> None:
    """It is replaced while its deployment wakes; what it cannot wait for gets an answer."""
    async with Stack(tmp_path, hold_max_wait_s=60) as stack:
        asked = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.hold.waiting == 1)
        stack.router.end()
        ended = asyncio.create_task(_drain(stack.router, server_of(stack.router), 0.0))
        await Fleet(stack).come(*team("m", "a", 1))
        assert (await asked).json()["choices"][0]["text"] == answer_of("a", "hello", 5, 8)
        await ended


async def test_what_a_router_holds_at_the_end_of_its_time_is_answered_and_not_cut_off(
    tmp_path: Path, left: Path
) -> None:
    async with Stack(tmp_path, hold_max_wait_s=60, drain_timeout_s=0.1) as stack:
        asked = asyncio.create_task(stack.complete())
        await stack.until(lambda: stack.router.queue.hold.waiting == 1)
        stack.router.end()
        await _drain(stack.router, server_of(stack.router), 0.0)
        answer = await asked
        assert (answer.status_code, cut_of(left.read_text())) == (503, 0)
        assert "this router ends" in answer.json()["error"]["message"]
        assert int(answer.headers["retry-after"]) >= 5


async def test_of_a_router_that_is_killed_it_is_known_what_it_had(tmp_path: Path, left: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.hold.clear()
        asked = [asyncio.create_task(stack.complete()) for _ in range(3)]
        await stack.until(lambda: stack.router.active == 3)
        draining = asyncio.create_task(_drain(stack.router, server_of(stack.router), 0.0))
        await stack.until(lambda: cut_of(left.read_text()) == 3)
        assert not draining.done()
        decode.hold.set()
        await asyncio.gather(*asked)
        await draining
        assert cut_of(left.read_text()) == 0


async def test_what_a_router_cuts_off_at_the_end_of_its_time_is_counted(tmp_path: Path, left: Path) -> None:
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode, drain_timeout_s=0.1) as stack:
        server = server_of(stack.router)
        await _drain(stack.router, server, 0.0)
        assert (cut_of(left.read_text()), server.should_exit) == (0, True)
        decode.hold.clear()
        asked = [asyncio.create_task(stack.complete()) for _ in range(3)]
        await stack.until(lambda: stack.router.active == 3)
        await _drain(stack.router, server, 0.0)
        assert cut_of(left.read_text()) == 3
        decode.hold.set()
        await asyncio.gather(*asked)
