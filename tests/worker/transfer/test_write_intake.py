"""Tests of what a prefill worker may say of its writes, on a real socket: nothing is used unless
each block is what was written, and the blocks are kept while it may write.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.worker.transfer.bound_rig import CRC, MAC, Lane
from tests.worker.transfer.rig import BLOCKS, FIRST, KEY, LAYOUT, SOURCE, TOKENS, Memory, Rig, rig
from tests.worker.transfer.test_landing import REACH, FakeAgent, InRegion

from disagg_protocol.ticket import token_hash
from disagg_worker.transfer import landing
from disagg_worker.transfer.frames import FrameType, Header
from disagg_worker.transfer.greeting import session_keys
from disagg_worker.transfer.landing import Landings
from disagg_worker.transfer.listener import Session
from disagg_worker.transfer.manifest import combined, commit_payload
from disagg_worker.transfer.reach import Place
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.seals import block_tag
from disagg_worker.transfer.ucx_report import Moved
from disagg_worker.values.kv_blocks import Region

BLOCK_BYTES = LAYOUT.layers * LAYOUT.layer_block_bytes


class Writing:
    """A prefill worker that writes by itself, and decode, which has offered its blocks."""

    def __init__(self, r: Rig, bound: dict[str, str]) -> None:
        self.rig, self.agent = r, FakeAgent(0)
        self.landings = Landings(lambda: self.agent, REACH, "auto", Place("m", "p", "n"), 100)
        self.landings.open()
        self.memory = InRegion()
        self.session: Session = r.announce(**bound)
        offered = self.landings.offer(REACH, "p", self.memory)
        assert offered is not None
        self.session.reservation, self.session.landing = self.memory, offered[1]
        self.lane = Lane(self.session.ticket).begin()
        self.key = session_keys(KEY, self.lane.challenge, self.lane.content["proof"]).blocks

    def say(self, kind: FrameType, content: dict[str, Any]) -> None:
        self.lane.link.send_json(kind, content)

    def begin(self) -> Writing:
        self.say(FrameType.WRITES, {"pid": os.getpid(), "machine": "m", "processes": "elsewhere"})
        assert self.lane.answer() == (FrameType.READY, {})
        return self

    def write(self, first: int = 0, n: int = BLOCKS) -> Writing:
        start, stop = first * BLOCK_BYTES, (first + n) * BLOCK_BYTES
        self.memory.bytes[start:stop] = SOURCE.bytes[start:stop]
        return self

    def tags(self, first: int = 0, n: int = BLOCKS, key: bytes | None = None) -> bytes:
        integrity = self.session.ticket.integrity
        return b"".join(
            block_tag(key or self.key, integrity, i, [SOURCE.view(layer, i) for layer in range(LAYOUT.layers)])
            for i in range(first, first + n)
        )

    def written(self, tags: bytes, first: int = 0, n: int = BLOCKS) -> Writing:
        self.lane.link.send(Header(FrameType.WRITTEN, 0, 0, first, n), [tags] if tags else [])
        self.lane.digest.add_tag(tags, n * BLOCK_BYTES)
        return self

    def commit(self, *, notified: bool = True, **more: Any) -> None:
        if notified:
            self.agent.tags.add(self.session.ticket.transfer_id.encode())
        content = commit_payload(combined({0: self.lane.digest}), len(TOKENS), token_hash(TOKENS), FIRST)
        self.say(FrameType.COMMIT, content | {"connections": [0]} | more)

    def error(self) -> str:
        """Return the reason of the failure, which both sides hear."""
        outcome = self.rig.outcome()
        assert isinstance(outcome, tuple)
        kind, content = self.lane.answer()
        assert (kind, content["message"]) == (FrameType.ERROR, outcome[1])
        return outcome[1]

    def free(self) -> None:
        deadline_s = time.monotonic() + 20
        while self.memory.released.qsize() != 1:
            assert time.monotonic() < deadline_s
            threading.Event().wait(0.005)
        assert self.landings.held_blocks == 0


@contextmanager
def writing(bound: dict[str, str] = MAC, idle_s: float = 5.0) -> Iterator[Writing]:
    with rig(idle_s=idle_s) as r:
        found = Writing(r, bound)
        with found.lane:
            yield found


@pytest.mark.parametrize("bound", [MAC, CRC], ids=["mac", "crc32c"])
def test_blocks_that_were_written_and_told_in_any_order_are_taken(bound: dict[str, str]) -> None:
    with writing(bound) as w:
        w.begin().write()
        w.written(w.tags(1, 2), 1, 2).written(w.tags(0, 1), 0, 1)
        w.commit(moved=["rdma", "Proved", "mlx5_0:1"])
        assert w.lane.answer() == (FrameType.ACK, {"kv_bytes": len(SOURCE.bytes)})
        received = w.rig.outcome()
        assert isinstance(received, Received)
        assert (received.first_token, received.moved) == (FIRST.token, Moved("rdma", "Proved", "mlx5_0:1"))
        assert (w.memory.released.empty(), w.landings.held_blocks) == (True, 0)


def test_a_worker_that_does_not_take_the_offer_sends_over_the_connection() -> None:
    with writing() as w:
        w.lane.layers(range(LAYOUT.layers)).commit()
        assert w.lane.answer()[0] is FrameType.ACK
        received = w.rig.outcome()
        assert isinstance(received, Received)
        assert received.moved is None
        assert w.memory.bytes == SOURCE.bytes


def test_blocks_of_which_no_tags_can_be_computed_are_believed() -> None:
    """Prefill computes none of a GPU's memory, and a GPU's memory is not read to check them."""
    for tags in (False, True):
        with writing() as w:
            w.agent.region = Region(0, BLOCK_BYTES, 100, 0)
            w.begin().written(w.tags() if tags else b"")
            w.commit()
            assert w.lane.answer()[0] is FrameType.ACK


WRONG: dict[str, tuple[Callable[[Writing], object], str]] = {
    "another byte": (lambda w: (w.memory.bytes.__setitem__(5, 255), w.written(w.tags())), "block 0 is not what was"),
    "another key": (lambda w: w.written(w.tags(key=b"x" * 16)), "block 0 is not what was written"),
    "blocks exchanged": (lambda w: w.written(w.tags(1, 1) + w.tags(0, 1), 0, 2), "block 0 is not what was written"),
    "a tag too few": (lambda w: w.written(w.tags(0, 2)), "bytes of tags for 3 blocks"),
    "a block twice": (lambda w: w.written(w.tags(0, 1), 0, 1).written(w.tags(0, 1), 0, 1), "came twice"),
    "a block too many": (lambda w: w.written(b"", 1, 3), "blocks 1"),
    "no block": (lambda w: w.written(b"", 1, 0), "blocks 1"),
    "WRITES again": (lambda w: w.say(FrameType.WRITES, {"pid": 1}), "once"),
    "another frame": (lambda w: w.say(FrameType.READY, {}), "unexpected READY"),
    "an error": (lambda w: w.say(FrameType.ERROR, {"code": "c", "message": "m"}), "prefill gave up"),
    "noise": (lambda w: w.lane.sock.sendall(os.urandom(200)), "not a KV transfer"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_fails_the_transfer_and_its_blocks_wait_for_the_end_of_the_writes(what: str) -> None:
    do, message = WRONG[what]
    with writing() as w:
        w.begin().write()
        do(w)
        assert message in w.error()
        assert (w.memory.released.empty(), w.landings.held_blocks) == (True, BLOCKS)
        if what != "noise":  # After that nothing can be understood, as after the end of the process.
            w.say(FrameType.RELEASED, {"flushed": True})
        else:
            w.lane.sock.close()
        w.free()
        assert w.agent.closed == (what == "noise")
        w.rig.serves_the_next()


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda w: w.commit(notified=False), "has not notified"),
        (lambda w: w.commit(), "never arrived"),
        (lambda w: w.written(w.tags()).commit(token_hash="x"), "commit.token_hash"),
        (lambda w: w.say(FrameType.RELEASED, {"flushed": True}), "has given the writes up"),
    ],
)
def test_blocks_are_free_at_once_when_prefill_says_that_it_has_ended(
    do: Callable[[Writing], None], message: str
) -> None:
    with writing(idle_s=0.3 if message == "has not notified" else 5.0) as w:
        w.begin().write()
        do(w)
        assert message in w.error()
        w.free()
        assert not w.agent.closed


@pytest.mark.parametrize("do", [lambda w: w.written(b""), lambda w: w.say(FrameType.RELEASED, {})])
def test_nothing_is_written_before_it_was_announced(do: Callable[[Writing], object]) -> None:
    with writing() as w:
        do(w)
        w.error()
        w.free()


def test_a_cancel_is_told_at_once_and_the_blocks_are_free_when_prefill_has_stopped() -> None:
    with writing() as w:
        w.begin()
        w.rig.listener.cancel(w.session)
        assert w.lane.answer()[1]["code"] == "cancelled"
        assert w.memory.released.empty()
        w.say(FrameType.RELEASED, {"flushed": True})
        w.free()
        outcome = w.rig.outcome()
        assert isinstance(outcome, tuple)
        assert outcome[0] == "cancelled"


def test_a_ticket_that_is_not_used_gives_its_blocks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landing, "RELEASE_S", 0.1)
    with rig() as r:
        landings = Landings(lambda: FakeAgent(0), REACH, "auto", Place("m", "p", "n"), 100)
        landings.open()
        session, memory = r.announce(**MAC), Memory()
        offered = landings.offer(REACH, "p", memory)
        assert offered is not None
        session.reservation, session.landing = memory, offered[1]
        r.listener.cancel(session)
        assert memory.released.qsize() == 1
        assert (landings.held_blocks, offered[1].generation.live) == (0, 0)
