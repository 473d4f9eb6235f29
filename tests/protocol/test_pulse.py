"""Tests of the process that sends beats, with a real worker process in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.ports import free_port

from disagg_protocol.pulse import Pulse
from disagg_protocol.pulse_board import PulseBoard
from disagg_protocol.pulse_process import Sender, is_stopped
from disagg_wire.pulse import INTERVAL_S, Beat, parse

REPO = Path(__file__).parents[2]
LIMIT_S = 30.0


@dataclass
class Beating:
    """The process, the ID of the process that beats for it, and a connection."""

    process: asyncio.subprocess.Process
    beats_pid: int
    port: int
    reader: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    writer: asyncio.StreamWriter | None = None

    async def beat(self) -> Beat:
        async with asyncio.timeout(LIMIT_S):
            while not (line := await self.reader.readline()).startswith(b"{"):
                assert line, "the stream has ended"
            return parse(line)

    async def connect(self) -> None:
        await self.close()
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writer.write(b"GET /internal/v1/pulse HTTP/1.1\r\nhost: x\r\nauthorization: x\r\n\r\n")

    async def close(self) -> None:
        if self.writer is not None:
            self.writer.close()
            with contextlib.suppress(OSError):
                await self.writer.wait_closed()


@contextlib.asynccontextmanager
async def beating() -> AsyncIterator[Beating]:
    port = free_port()
    environment = os.environ | {"PYTHONPATH": str(REPO / "worker")}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(REPO / "tests" / "protocol" / "beating_process.py"), str(port), env=environment,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        async with asyncio.timeout(LIMIT_S):
            pid = int(await process.stdout.readline())
        one = Beating(process, pid, port)
        try:
            await one.connect()
            yield one
        finally:
            await one.close()
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_beats_come_while_another_thread_holds_the_interpreter_lock() -> None:
    async with beating() as one:
        assert (await one.beat()).step_s is None
        assert one.process.stdin is not None
        one.process.stdin.write(b"3\n")
        while (beat := await one.beat()).step_s is None:
            pass
        held = [beat]
        while (beat := await one.beat()).step_s is not None:
            held.append(beat)
        assert max(beat.step_s or 0.0 for beat in held) > 2.0  # It is said how long the step takes ...
        assert max(beat.loop_s for beat in held) > 1.5  # ... although the loop has not run meanwhile.
        assert {(beat.steps, beat.expected_s) for beat in held} == {(1, 0.5)}


async def _falls_silent(one: Beating) -> bool:
    """Return whether the time of six beats passes without one, but for those under way."""
    for _ in range(20):
        try:
            await asyncio.wait_for(one.beat(), 6 * INTERVAL_S)
        except TimeoutError:
            return True
    return False


async def test_a_process_that_is_stopped_sends_none_until_it_goes_on() -> None:
    async with beating() as one:
        await one.beat()
        one.process.send_signal(signal.SIGSTOP)
        while not is_stopped(one.process.pid):
            await asyncio.sleep(0.01)
        assert await _falls_silent(one)
        one.process.send_signal(signal.SIGCONT)
        await one.beat()


async def _is_replaced(one: Beating) -> None:
    """Wait until the connection ends and another process sends beats on a new one."""
    async with asyncio.timeout(LIMIT_S):
        while await one.reader.read(4096):
            pass
        while True:
            with contextlib.suppress(AssertionError, OSError):
                await one.connect()
                await one.beat()
                break


async def test_the_process_that_beats_ends_with_the_worker_and_is_replaced_if_it_dies() -> None:
    async with beating() as one:
        await one.beat()
        os.kill(one.beats_pid, signal.SIGKILL)
        await _is_replaced(one)
        children = Path(f"/proc/{one.process.pid}/task/{one.process.pid}/children").read_text().split()
        (pid,) = (int(child) for child in children)
        assert pid != one.beats_pid
        one.process.kill()
        async with asyncio.timeout(LIMIT_S):
            while not is_stopped(pid):
                await asyncio.sleep(0.01)


async def test_a_process_that_beats_and_is_stopped_alone_is_replaced() -> None:
    async with beating() as one:
        await one.beat()
        os.kill(one.beats_pid, signal.SIGSTOP)
        await _is_replaced(one)
        assert is_stopped(one.beats_pid)  # It is gone.


async def test_a_router_that_does_not_read_holds_up_nobody_and_a_stop_does_not_wait_for_it() -> None:
    async with beating() as one:
        await one.beat()
        reader, writer = await asyncio.open_connection("127.0.0.1", one.port)
        writer.write(b"GET /internal/v1/pulse HTTP/1.1\r\nhost: x\r\n\r\n")
        assert b"401" in await reader.readline()
        writer.close()
        await writer.wait_closed()
        one.process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(LIMIT_S):
            await one.process.wait()


def test_a_connection_that_takes_no_more_misses_beats_and_one_that_broke_is_closed() -> None:
    sender = Sender()
    ours, theirs = socket.socketpair()
    gone, peer = socket.socketpair()
    sender.add(1, ours.detach())
    sender.add(2, gone.detach())
    peer.close()
    sender.drop(3)
    for _ in range(2):
        sender.send(b"x")
    assert theirs.recv(16) == b"xx"
    whole = b"y" * 16
    for _ in range(100_000):
        sender.send(whole)
    theirs.setblocking(False)
    read = 0
    with contextlib.suppress(BlockingIOError):
        while part := theirs.recv(1 << 16):
            read += len(part)
    assert read > 0
    sender.drop(1)
    theirs.close()


def test_a_reader_in_another_process_finds_what_was_written() -> None:
    board = PulseBoard()
    board.begins(0.25)
    board.loop_runs()
    read = (
        "import sys\nfrom disagg_protocol.pulse_board import PulseBoard\n"
        "print(PulseBoard(int(sys.argv[1])).beat().line().decode())"
    )
    found = subprocess.run(
        [sys.executable, "-c", read, str(board.fd)], pass_fds=(board.fd,), capture_output=True, check=True,
        env=os.environ | {"PYTHONPATH": str(REPO / "worker")},
    )  # fmt: skip
    beat = parse(found.stdout.strip())
    assert (beat.steps, beat.expected_s) == (1, 0.25)
    assert beat.step_s is not None
    board.ends()
    assert board.beat().step_s is None


async def test_a_process_without_descriptors_sends_no_beats_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def none_left(*how: object) -> None:
        tries.append(how)
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(socket, "socketpair", none_left)
    monkeypatch.setattr("disagg_protocol.pulse._RESTART_S", 0.0)
    pulse = Pulse()
    running = asyncio.create_task(pulse.run())
    async with asyncio.timeout(LIMIT_S):
        while len(tries) < 2:
            await asyncio.sleep(0.01)
    assert not running.done()
    assert pulse.pid is None
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    assert pulse.board.beat().loop_s < LIMIT_S
