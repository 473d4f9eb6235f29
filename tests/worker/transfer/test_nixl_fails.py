"""Tests of prefill when NIXL fails with a decode worker: that transfer is lost, and the next ones
go over TCP for a while, into the offered blocks.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from tests.worker.transfer.bound_rig import MAC, PREFILL
from tests.worker.transfer.rig import BLOCKS, FIRST, KEY, LAYOUT, SOURCE, TOKENS, Rig, rig, until
from tests.worker.transfer.test_landing import REACH, FakeAgent, InRegion

from disagg_worker.server.jobs import Node
from disagg_worker.transfer import writes
from disagg_worker.transfer.landing import Landings
from disagg_worker.transfer.listener import Session
from disagg_worker.transfer.nixl_agent import Piece
from disagg_worker.transfer.nixl_peers import Writer
from disagg_worker.transfer.reach import Place
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sender import TcpKvSender, TransferDone
from disagg_worker.transfer.sender_timeouts import NixlFailed
from disagg_worker.transfer.writes import NixlKvSender
from disagg_worker.values.kv_blocks import Region

PLACE = Place("m", "p", "n")


class WritingAgent(FakeAgent):
    """An agent that fails in one of its calls, or is never done."""

    def __init__(self, fails: str) -> None:
        super().__init__(1)
        self._fails = fails
        self.wrote = threading.Event()

    def _call(self, name: str) -> None:
        if self._fails == name:
            raise NixlFailed(f"NIXL: {name}")

    def add_peer(self, metadata: bytes) -> str:
        self._call("add_peer")
        return "peer"

    def remove_peer(self, peer: str) -> None:
        pass

    def write(self, peer: str, source: list[Piece], peer_region: Region, target: list[Piece]) -> Any:
        self._call("write")
        self.wrote.set()
        return object()

    def done(self, write: Any) -> bool:
        self._call("done")
        return self._fails == "notify"

    def forget(self, write: Any) -> None:
        pass

    def notify(self, peer: str, tag: bytes) -> None:
        """Lose the notification, so that decode misses it."""


class Pair:
    """Prefill with an agent, and decode, which offers its blocks."""

    def __init__(self, r: Rig, make: Callable[[], FakeAgent]) -> None:
        self.rig, self.writer = r, Writer(make)
        self.landings = Landings(lambda: FakeAgent(0), REACH, "auto", PLACE, 100)
        self.landings.open()
        self.done: queue.SimpleQueue[TransferDone] = queue.SimpleQueue()

    def sender(self) -> tuple[TcpKvSender, Session, InRegion]:
        """Return what opens a transfer. Decode may have to replace its agent before it offers."""
        memory = InRegion()
        until(lambda: self.landings.is_open and not self.landings.held_blocks)
        offered = self.landings.offer(REACH, "another", memory)
        assert offered is not None
        session = self.rig.announce(**MAC, offer=offered[0].encode())
        session.reservation, session.landing = memory, offered[1]
        node: Any = SimpleNamespace(
            listener=SimpleNamespace(host="127.0.0.1"),
            interface="lo",
            key=KEY,
            incarnation=PREFILL,
            engine=SimpleNamespace(layout=LAYOUT),
            connections=2,
            nixl=SimpleNamespace(writer=self.writer, place=PLACE),
        )
        request: Any = SimpleNamespace(tokens=TOKENS)
        return Node.open_sender(node, request, session.ticket, self.done.put), session, memory

    @staticmethod
    def send(sender: TcpKvSender, *, commit: bool = True) -> None:
        for layer in range(LAYOUT.layers):
            sender.layer_ready(layer, 0, SOURCE.blocks(0, BLOCKS))
        if commit:
            sender.commit(FIRST)

    def end(self) -> TransferDone:
        return self.done.get(timeout=30)


@pytest.mark.parametrize("fails", ["write", "done", "notify"])
def test_after_a_failure_kv_goes_over_tcp_into_the_offered_blocks(monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    monkeypatch.setattr(writes, "_SETTLE_S", 0.05)
    with rig(idle_s=1.5) as r:
        pair = Pair(r, lambda: WritingAgent(fails))
        first, session, _ = pair.sender()
        assert isinstance(first, NixlKvSender)
        pair.send(first)
        assert pair.end().error is not None
        assert isinstance(r.outcome(), tuple)
        assert pair.writer.avoids(session.ticket.decode_incarnation)
        second, _, memory = pair.sender()
        assert not isinstance(second, NixlKvSender)
        pair.send(second)
        assert pair.end().error is None
        assert isinstance(r.outcome(), Received)
        assert memory.bytes == SOURCE.bytes
        assert not pair.writer.avoids("another/incarnation")


def _no_agent() -> FakeAgent:
    raise RuntimeError("no memory may be locked")


@pytest.mark.parametrize("make", [lambda: WritingAgent("add_peer"), _no_agent])
def test_without_an_agent_or_a_peer_the_kv_is_sent_over_tcp_at_once(make: Callable[[], FakeAgent]) -> None:
    with rig(idle_s=5) as r:
        pair = Pair(r, make)
        sender, session, memory = pair.sender()
        pair.send(sender)
        assert pair.end().error is None
        assert isinstance(r.outcome(), Received)
        assert memory.bytes == SOURCE.bytes
        assert pair.writer.avoids(session.ticket.decode_incarnation)


def test_a_cancel_is_no_failure_of_nixl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writes, "_SETTLE_S", 0.05)
    with rig(idle_s=5) as r:
        agent = WritingAgent("nothing")
        pair = Pair(r, lambda: agent)
        sender, session, _ = pair.sender()
        pair.send(sender, commit=False)
        assert agent.wrote.wait(10)
        sender.cancel()
        assert pair.end().error is not None
        assert not pair.writer.avoids(session.ticket.decode_incarnation)
        assert isinstance(r.outcome(), tuple)
