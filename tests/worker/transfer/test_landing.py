"""Tests of the quarantine: blocks are given back exactly when nobody can write into them, and what
is offered stays within bounds.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.worker.transfer.rig import BLOCKS, Memory

from disagg_worker.transfer import landing
from disagg_worker.transfer.frames import FrameError
from disagg_worker.transfer.landing import Landing, Landings
from disagg_worker.transfer.nixl_agent import Piece
from disagg_worker.transfer.reach import Place
from disagg_worker.transfer.sender_timeouts import TransferFailed
from disagg_worker.values.kv_blocks import Region

REACH = {"rdma": "network"}


class FakeAgent:
    """Implements nixl_agent.Agent without memory."""

    def __init__(self, number: int) -> None:
        self.name, self.metadata, self.region = f"agent{number}", b"", Region(0, 1, 100)
        self.closed = self.worked = False
        self.tags: set[bytes] = set()

    def add_peer(self, metadata: bytes) -> str:
        raise AssertionError("this end only lets others write")

    def remove_peer(self, peer: str) -> None:
        raise AssertionError("this end only lets others write")

    def write(self, peer: str, source: list[Piece], peer_region: Region, target: list[Piece]) -> Any:
        raise AssertionError("this end only lets others write")

    def done(self, write: Any) -> bool:
        raise AssertionError("this end only lets others write")

    def forget(self, write: Any) -> None:
        raise AssertionError("this end only lets others write")

    def notify(self, peer: str, tag: bytes) -> None:
        raise AssertionError("this end only lets others write")

    def notified(self, tag: bytes) -> bool:
        return tag in self.tags

    def progress(self) -> None:
        self.worked = True

    def close(self) -> None:
        self.closed = True


class Rig:
    def __init__(self, blocks: int) -> None:
        self.agents: list[FakeAgent] = []
        self.landings = Landings(self._make, REACH, "auto", Place("machine", "here", "n"), blocks)
        self.landings.open()

    def _make(self) -> FakeAgent:
        self.agents.append(FakeAgent(len(self.agents)))
        return self.agents[-1]

    def begun(self, prefill: str = "p", pid: int | None = None, near: bool = False) -> tuple[Landing, Memory]:
        memory = InRegion()
        offered = self.landings.offer(REACH, prefill, memory)
        assert offered is not None
        offered[1].begin({"pid": pid or os.getpid(), "machine": "machine", "processes": "here" if near else "there"})
        return offered[1], memory


class InRegion(Memory):
    def written_in_region(self) -> None:
        pass


def until(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Rig:
    monkeypatch.setattr(landing, "RELEASE_S", 0.05)
    return Rig(100)


@contextmanager
def process() -> Iterator[subprocess.Popen[bytes]]:
    running = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        yield running
    finally:
        running.kill()
        running.wait()
        assert running.stdin is not None
        running.stdin.close()


def test_an_agent_works_while_somebody_may_write(rig: Rig) -> None:
    agent = rig.agents[0]
    one, _ = rig.begun()
    until(lambda: agent.worked)
    one.end()
    until(lambda: not rig.landings._working)
    other, _ = rig.begun("q")
    agent.worked = False
    other.hold()
    until(lambda: agent.worked)
    other.released(flushed=True)
    until(lambda: not rig.landings._working)


def test_what_is_acknowledged_is_given_back_at_once(rig: Rig) -> None:
    one, memory = rig.begun()
    one.hold()
    assert (rig.landings.held_blocks, memory.released.empty()) == (BLOCKS, True)
    one.released(flushed=True)
    assert (rig.landings.held_blocks, memory.released.qsize()) == (0, 1)
    assert not rig.agents[0].closed


@pytest.mark.parametrize("said", [True, False], ids=["not flushed", "silent"])
def test_without_that_the_agent_is_closed_first_when_the_transfers_of_others_are_over(rig: Rig, said: bool) -> None:
    one, memory = rig.begun()
    other, _ = rig.begun("q")
    one.hold()
    if said:
        one.released(flushed=False)
    until(lambda: len(rig.agents) == 2)
    assert (rig.agents[0].closed, memory.released.empty()) == (False, True)
    assert rig.begun("q")[0].generation.agent is rig.agents[1]
    other.end()
    until(lambda: not memory.released.empty())
    assert [agent.closed for agent in rig.agents] == [True, False]
    assert rig.landings.held_blocks == 0
    until(lambda: not rig.landings._watching)


def test_a_process_that_shares_memory_must_end_as_well(rig: Rig) -> None:
    with process() as running:
        one, memory = rig.begun(pid=running.pid, near=True)
        one.hold()
        until(lambda: rig.agents[0].closed)
        assert one.may_be_told()
        assert memory.released.empty()
    until(lambda: not memory.released.empty())
    assert not one.may_be_told()


def test_a_process_that_shares_memory_may_say_that_it_is_done(rig: Rig) -> None:
    with process() as running:
        one, memory = rig.begun(pid=running.pid, near=True)
        one.hold()
        one.released(flushed=False)
        until(lambda: not memory.released.empty())


def test_a_process_of_the_machine_that_is_not_seen_may_write_to_a_gpu_until_it_leaves(rig: Rig) -> None:
    rig.agents[0].region = Region(0, 1, 100, 0)
    one, memory = rig.begun()
    one.hold()
    until(lambda: rig.agents[0].closed)
    rig.landings.look()
    assert (one.may_be_told(), memory.released.empty()) == (True, True)
    one.silent(left=True)
    until(lambda: not memory.released.empty())


def test_the_end_of_a_transfer_holds_nothing_and_counts_once(rig: Rig) -> None:
    one, memory = rig.begun()
    one.end()
    one.end()
    one.hold()
    assert (one.generation.live, rig.landings.held_blocks, memory.released.empty()) == (0, 0, True)


def test_who_holds_blocks_gets_no_offer_and_nobody_when_too_many_are_held() -> None:
    rig = Rig(BLOCKS * 8)
    for name in ("p", "q", "r"):
        rig.begun(name)[0].hold()
        assert rig.landings.offer(REACH, name, Memory()) is None
    assert rig.landings.offer(REACH, "s", Memory()) is None
    assert rig.landings.offer({"shm": "here"}, "s", Memory()) is None


@pytest.mark.parametrize("content", [{}, {"pid": "1"}, {"pid": True}, {"pid": -1}, {"pid": 1 << 30}])
def test_what_does_not_say_who_writes_may_not_write(rig: Rig, content: dict[str, Any]) -> None:
    offered = rig.landings.offer(REACH, "p", InRegion())
    assert offered is not None
    with pytest.raises(FrameError, match="WRITES"):
        offered[1].begin(content | {"processes": "here"})
    assert offered[1].quiet


def test_the_notification_of_nixl_is_waited_for(rig: Rig) -> None:
    one, _ = rig.begun()
    with pytest.raises(FrameError, match="once"):
        one.begin({"pid": 1})
    with pytest.raises(TimeoutError):
        one.await_notification(b"t", 0.01)
    rig.agents[0].tags.add(b"t")
    one.await_notification(b"t", 0.01)


def test_an_agent_that_cannot_be_made_is_tried_by_the_next_request(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    one, memory = rig.begun()
    make = rig._make
    failed: list[int] = []

    def broken() -> FakeAgent:
        if not failed:
            failed.append(1)
            raise RuntimeError("no memory to lock")
        return make()

    monkeypatch.setattr(rig.landings, "_make", broken)
    one.hold()
    until(lambda: not memory.released.empty())
    until(lambda: failed == [1])
    assert not rig.landings.is_open
    rig.landings.open()
    assert rig.landings.is_open


def test_an_agent_that_cannot_be_made_is_not_tried_with_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def make() -> FakeAgent:
        tried.append(1)
        if len(tried) < 4:
            raise RuntimeError("no memory may be locked")
        return FakeAgent(0)

    clock_s = 1000.0
    monkeypatch.setattr("disagg_worker.transfer.landing.time.monotonic", lambda: clock_s)
    landings = Landings(make, REACH, "auto", Place("machine", "here", "n"), 10)
    with pytest.raises(RuntimeError):
        landings.open()
    for attempts, pause_s in ((2, 2.0), (3, 4.0)):
        assert landings.may_open
        for _ in range(5):
            with pytest.raises((RuntimeError, TransferFailed)):
                landings.open()
            assert not landings.may_open
        assert len(tried) == attempts
        assert landings.offer(REACH, "p", InRegion()) is None
        clock_s += pause_s
    landings.open()
    assert landings.is_open
    assert not landings.may_open
