"""Tests of a candidate against an API server in memory, on a clock that the test moves."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Awaitable
from typing import Any

import pytest

from disagg_operator.controller.elector import Alone, Elector
from disagg_operator.controller.leadership import Timing
from disagg_operator.kube.errors import Conflict, Forbidden, Retry
from disagg_operator.kube.resources import Resource
from disagg_operator.vocabulary import Obj

TIMING = Timing(lease_s=15.0, renew_deadline_s=10.0, retry_s=0.001)


class Door:
    """One Lease, replaced only by who has read its last version."""

    def __init__(self) -> None:
        self.lease: Obj | None = None
        self.version = 0
        self.fails: Exception | None = None
        self.calls: list[str] = []

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        self._begin("get")
        return copy.deepcopy(self.lease)

    async def create(self, obj: Obj) -> Obj:
        self._begin("create")
        if self.lease is not None:
            raise Conflict("it exists")
        return self._store(obj)

    async def replace(self, obj: Obj) -> Obj:
        self._begin("replace")
        if self.lease is None or self.lease["metadata"]["resourceVersion"] != obj["metadata"]["resourceVersion"]:
            raise Conflict("it has changed")
        return self._store(obj)

    def touch(self, **spec: Any) -> None:
        """Change the Lease as somebody else would."""
        assert self.lease is not None
        self._store({**self.lease, "spec": {**self.lease["spec"], **spec}})

    def holder(self) -> str:
        return "" if self.lease is None else str(self.lease["spec"]["holderIdentity"])

    def _begin(self, verb: str) -> None:
        self.calls.append(verb)
        if self.fails is not None:
            raise self.fails

    def _store(self, obj: Obj) -> Obj:
        self.version += 1
        self.lease = {**obj, "metadata": {**obj["metadata"], "resourceVersion": str(self.version)}}
        return copy.deepcopy(self.lease)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def candidate(door: Door, clock: Clock, me: str = "a") -> Elector:
    return Elector(
        door,
        namespace="sys",
        name="l",
        me=me,
        timing=TIMING,
        clock=clock,
        wall=lambda: "now",
        chance=lambda: 0.0,
    )


class Running:
    """A candidate that looks at the Lease until the end of the block."""

    def __init__(self, elector: Elector) -> None:
        self._elector = elector

    async def __aenter__(self) -> Elector:
        self._task = asyncio.create_task(self._elector.run())
        return self._elector

    async def __aexit__(self, *_: object) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def soon(waiting: Awaitable[None]) -> None:
    async with asyncio.timeout(30):
        await waiting


async def looks(door: Door, n: int) -> None:
    """Wait until the candidates have made `n` more calls."""
    until = len(door.calls) + n
    async with asyncio.timeout(30):
        while len(door.calls) < until:
            await asyncio.sleep(0.001)


async def test_it_takes_the_lease_and_renews_it_by_one_call_each() -> None:
    door, clock = Door(), Clock()
    async with Running(candidate(door, clock)) as elector:
        assert elector.write_within_s() == 0.0
        await soon(elector.gained())
        await looks(door, 3)
        assert elector.write_within_s() == 15.0
    assert door.calls[:4] == ["get", "create", "replace", "replace"]


async def test_without_renewals_it_loses_at_the_deadline_and_leads_again_when_they_work() -> None:
    door, clock = Door(), Clock()
    async with Running(candidate(door, clock)) as elector:
        await soon(elector.gained())
        door.fails = Retry("away")
        lost = asyncio.create_task(elector.lost())
        await looks(door, 2)
        assert not lost.done()
        clock.now_s += 10.0
        assert elector.write_within_s() == 0.0
        await looks(door, 2)
        await soon(lost)
        door.fails = None
        await soon(elector.gained())
    assert door.lease is not None
    assert door.lease["spec"]["leaseTransitions"] == 0


async def test_the_deadline_ends_the_term_even_while_a_renewal_hangs() -> None:
    door = Door()
    timing = Timing(lease_s=1.0, renew_deadline_s=0.05, retry_s=0.001)
    loop = asyncio.get_running_loop()
    elector = Elector(
        door, namespace="sys", name="l", me="a", timing=timing, clock=loop.time, wall=str, chance=lambda: 0.0
    )
    async with Running(elector):
        await soon(elector.gained())

        async def hang(obj: Obj) -> Obj:
            await asyncio.Event().wait()
            return obj

        door.replace = hang  # type: ignore[method-assign]
        await soon(elector.lost())
        assert elector.write_within_s() == 0.0


async def test_a_process_that_was_stopped_finds_that_another_leads() -> None:
    door, clock = Door(), Clock()
    async with Running(candidate(door, clock)) as elector:
        await soon(elector.gained())
        clock.now_s += 20.0
        assert elector.write_within_s() == 0.0, "before it has looked"
        door.touch(holderIdentity="b")
        await soon(elector.lost())
        await looks(door, 3)
        assert (elector.write_within_s(), door.holder()) == (0.0, "b")


async def test_a_lease_that_somebody_else_touched_is_still_ours() -> None:
    door, clock = Door(), Clock()
    async with Running(candidate(door, clock)) as elector:
        await soon(elector.gained())
        door.touch(note="x")
        await looks(door, 4)
        assert (elector.write_within_s(), door.holder()) == (15.0, "a")


async def test_one_leads_and_the_other_takes_over_when_the_lease_is_given_back() -> None:
    door, clock = Door(), Clock()
    first, second = candidate(door, clock), candidate(door, clock, "b")
    async with contextlib.AsyncExitStack() as rest:
        async with Running(first):
            await soon(first.gained())
            await rest.enter_async_context(Running(second))
            await looks(door, 6)
            assert (first.write_within_s(), second.write_within_s()) == (15.0, 0.0)
        door.touch(note="the answer to its last renewal was lost")
        await first.release()
        assert first.write_within_s() == 0.0
        await soon(second.gained())


async def test_a_lease_is_not_given_back_by_a_candidate_that_does_not_hold_it() -> None:
    door, clock = Door(), Clock()
    await candidate(door, clock).release()
    assert door.calls == []


@pytest.mark.parametrize("error", [Forbidden("no"), Retry("away"), Conflict("it has changed")])
async def test_a_lease_that_cannot_be_given_back_is_left(error: Exception) -> None:
    door, clock = Door(), Clock()
    async with Running(candidate(door, clock)) as elector:
        await soon(elector.gained())
    door.fails = error
    await elector.release()
    assert elector.write_within_s() == 0.0


async def test_a_bug_does_not_end_the_election() -> None:
    door, clock = Door(), Clock()
    door.fails = ZeroDivisionError("a bug")
    async with Running(candidate(door, clock)) as elector:
        await looks(door, 2)
        door.fails = None
        await soon(elector.gained())


async def test_an_operator_without_a_lease_always_leads() -> None:
    alone = Alone()
    await soon(alone.gained())
    assert alone.write_within_s() == float("inf")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await alone.lost()


async def test_a_lease_that_is_older_than_before_is_that_of_a_backup() -> None:
    door, clock = Door(), Clock()
    async with Running(candidate(door, clock)) as elector:
        await soon(elector.gained())
        await looks(door, 5)
        told = asyncio.create_task(elector.restored())
        await looks(door, 5)
        assert not told.done()
        door.version = 1
        door.touch(holderIdentity="a")
        await soon(told)
        again = asyncio.create_task(elector.restored())
        await looks(door, 5)
        assert not again.done()
        again.cancel()


async def test_a_backup_from_before_the_lease_is_one_as_well_and_a_deletion_is_none() -> None:
    door, clock = Door(), Clock()
    async with Running(candidate(door, clock)) as elector:
        await soon(elector.gained())
        await looks(door, 5)
        told = asyncio.create_task(elector.restored())
        door.lease = None
        await looks(door, 6)
        assert not told.done()
        door.lease, door.version = None, 0
        await soon(told)
