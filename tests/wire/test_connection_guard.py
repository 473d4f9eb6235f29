"""Tests of the limits of a connection, on a transport and a clock that the test moves."""

from __future__ import annotations

import resource
from typing import Any, cast

import pytest

from disagg_wire.connection_guard import ConnectionGuard, ConnectionLimits, Port, raise_file_limit

LIMITS = ConnectionLimits(connections=2)


class Timer:
    def __init__(self, at_s: float, call: Any) -> None:
        self.at_s, self.call, self.cancelled = at_s, call, False

    def cancel(self) -> None:
        self.cancelled = True


class Clock:
    """An event loop that has nothing but timers."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.timers: list[Timer] = []

    def time(self) -> float:
        return self.now_s

    def call_later(self, delay_s: float, call: Any) -> Timer:
        self.timers.append(Timer(self.now_s + delay_s, call))
        return self.timers[-1]

    def advance(self, until_s: float) -> None:
        while due := sorted((t for t in self.timers if t.at_s <= until_s and not t.cancelled), key=lambda t: t.at_s):
            self.timers.remove(due[0])
            self.now_s = due[0].at_s
            due[0].call()
        self.now_s = until_s


class Wire:
    """A transport whose buffer a test fills."""

    def __init__(self, peer: str = "10.0.0.1") -> None:
        self.peer, self.left_bytes, self.aborted = peer, 0, False

    def get_write_buffer_size(self) -> int:
        return self.left_bytes

    def get_extra_info(self, name: str) -> Any:
        return (self.peer, 1) if name == "peername" else None

    def abort(self) -> None:
        self.aborted = True


class Rig:
    """A port, and its clock."""

    def __init__(self, limits: ConnectionLimits = LIMITS) -> None:
        self.stalls: list[int] = []
        self.clock = Clock()
        self.port = Port(limits, lambda: self.stalls.append(1))

    def connect(self, peer: str = "10.0.0.1") -> tuple[ConnectionGuard, Wire]:
        guard, wire = ConnectionGuard(self.port, cast("Any", self.clock)), Wire(peer)
        guard.made(cast("Any", wire))
        return guard, wire


def test_a_head_that_does_not_come_ends_the_connection() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    rig.clock.advance(9)
    guard.received(10)
    rig.clock.advance(11)
    assert wire.aborted


def test_bodies_and_answers_may_take_longer() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    guard.head_came()
    rig.clock.advance(100)
    guard.request_came()
    rig.clock.advance(1000)
    assert not wire.aborted
    guard.answered()
    rig.clock.advance(1074)
    assert not wire.aborted
    rig.clock.advance(1076)
    assert wire.aborted


def test_whoever_trickles_the_next_head_is_cut_as_well() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    guard.head_came()
    guard.request_came()
    guard.answered()
    for second in range(10, 80, 10):
        rig.clock.advance(second)
        guard.received(1)
        assert not wire.aborted
    rig.clock.advance(76)
    assert wire.aborted


def test_the_body_of_a_refused_request_comes_for_a_while() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    guard.head_came()
    guard.answered()
    for _ in range(100):
        guard.received(1 << 20)
    assert not wire.aborted
    guard.request_came()
    assert rig.port.slots.peers() == {"10.0.0.1": 1}
    rig.clock.advance(76)
    assert wire.aborted


def test_heads_are_bounded_in_bytes() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    for _ in range(2):
        guard.received(60_000)  # this may be the rest of a body, and the beginning of a head
        guard.head_came()
        guard.received(200_000)
        guard.request_came()
        guard.received(200_000)
        guard.answered()
    assert not wire.aborted
    guard.received(60_000)
    guard.received(60_000)
    assert wire.aborted


def test_connections_without_a_request_give_way() -> None:
    rig = Rig()
    (busy, _), (_, idle) = rig.connect(), rig.connect()
    busy.head_came()
    busy.request_came()
    _, third = rig.connect("10.0.0.2")
    assert (idle.aborted, third.aborted) == (True, False)


def test_pipelined_requests_keep_a_connection_engaged() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    for _ in range(2):
        guard.head_came()
        guard.request_came()
    guard.answered()
    rig.clock.advance(1000)
    assert not wire.aborted
    guard.answered()
    rig.clock.advance(1076)
    assert wire.aborted


def test_what_is_lost_is_forgotten() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    guard.head_came()
    guard.answered()
    wire.left_bytes = 1
    guard.paused()
    guard.lost()
    rig.clock.advance(1000)
    assert not wire.aborted
    assert len(rig.port.slots) == 0


def test_whoever_reads_nothing_is_cut() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    guard.head_came()
    wire.left_bytes = 80_000
    guard.paused()
    guard.paused()
    rig.clock.advance(59)
    assert not wire.aborted
    rig.clock.advance(75)
    assert (wire.aborted, rig.stalls) == (True, [1])


def test_whoever_reads_next_to_nothing_is_cut_as_well() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    guard.head_came()
    wire.left_bytes = 80_000
    guard.paused()
    for second in range(15, 61, 15):
        wire.left_bytes -= 1
        rig.clock.advance(second)
    assert (wire.aborted, rig.stalls) == (True, [1])


def test_whoever_reads_slowly_is_not_cut() -> None:
    """What is written meanwhile does not count as unread."""
    rig = Rig()
    guard, wire = rig.connect()
    guard.head_came()
    wire.left_bytes = 80_000
    guard.paused()
    for second in range(50, 1001, 50):
        rig.clock.advance(second)
        wire.left_bytes = 10_000
        guard.resumed()
        wire.left_bytes = 80_000
        guard.paused()
    assert not wire.aborted


def test_whoever_has_read_all_is_not_watched() -> None:
    rig = Rig()
    guard, wire = rig.connect()
    guard.resumed()
    guard.head_came()
    guard.request_came()
    wire.left_bytes = 100
    guard.answered()
    wire.left_bytes = 0
    rig.clock.advance(16)
    wire.left_bytes = 100
    rig.clock.advance(70)
    assert (wire.aborted, rig.stalls) == (False, [])


def test_there_are_no_more_connections_than_files(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = [(1024, 4096)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert raise_file_limit(4096) == 1280
    assert limits[-1] == (4096, 4096)
    limits.append((1024, resource.RLIM_INFINITY))
    assert raise_file_limit(4096) == 4096
    assert raise_file_limit(10) == 10
    limits.append((100, 100))
    assert raise_file_limit(4096) == 16
