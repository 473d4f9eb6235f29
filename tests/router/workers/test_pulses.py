"""Tests of the beats as the router hears them, while it starves itself, and of liars."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.router.workers.infos import worker

from disagg_router.workers import pulses
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.lease import Limits, Verdict
from disagg_router.workers.pulses import Pulses
from disagg_router.workers.worker_info import Worker
from disagg_wire.protocol import FEATURE_PULSE
from disagg_wire.pulse import Beat

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(line: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(line), line)


class Beating:
    """A server in a thread of its own, whose beats do not starve with the router's loop."""

    def __init__(self, interval_s: float = 0.02) -> None:
        self._server = socket.create_server(("127.0.0.1", 0))
        self._interval_s = interval_s
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        self.ended = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._server.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.recv(4096)
            sock.sendall(HEAD)
            while not self.ended:
                sock.sendall(chunk(Beat(1).line()))
                time.sleep(self._interval_s)

    def close(self) -> None:
        if self.ended:
            return
        self.ended = True
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@contextlib.contextmanager
def beating(interval_s: float = 0.02) -> Iterator[Beating]:
    one = Beating(interval_s)
    try:
        yield one
    finally:
        one.close()


@contextlib.asynccontextmanager
async def listening(url: str, silence_s: float):  # type: ignore[no-untyped-def]
    found: list[Verdict] = []
    client = WorkerClient("bearer")
    one = Pulses(client, Limits(silence_s=silence_s), lambda _, verdict: found.append(verdict))
    task = asyncio.create_task(one.run())
    one.note(worker("d0", "decode", url=url, features=frozenset({FEATURE_PULSE})))
    try:
        yield one, found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await client.close()


async def until_heard(one: Pulses, of: Worker) -> None:
    async with asyncio.timeout(20):
        while not one.vouches_for(of):
            await asyncio.sleep(0.01)


async def test_a_router_that_starves_again_and_again_takes_nobody_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each pause is longer than the patience with a connection, and the time between two is too
    short to open another one.
    """
    monkeypatch.setattr(pulses, "_PATIENCE_S", 0.3)
    with beating() as peer:
        async with listening(peer.url, 0.5) as (one, found):
            me = worker("d0", "decode", url=peer.url, features=frozenset({FEATURE_PULSE}))
            await until_heard(one, me)
            for _ in range(8):
                time.sleep(0.4)
                await asyncio.sleep(0.02)
            await asyncio.sleep(0.1)
            assert found == []
            assert peer.connections == 1


async def test_a_connection_that_is_silent_is_opened_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pulses, "_PATIENCE_S", 0.3)
    with beating(interval_s=60.0) as peer:
        async with listening(peer.url, 30.0), asyncio.timeout(20):
            while peer.connections < 3:
                await asyncio.sleep(0.01)


async def test_who_answers_polls_is_not_silent_and_who_does_not_is() -> None:
    """The process that sends beats may be stopped alone."""
    with beating() as peer:
        async with listening(peer.url, 0.5) as (one, found):
            me = worker("d0", "decode", url=peer.url, features=frozenset({FEATURE_PULSE}))
            await until_heard(one, me)
            peer.close()
            until_s = time.monotonic() + 1.5
            while time.monotonic() < until_s:
                one.note(me)
                await asyncio.sleep(0.1)
            assert found == []
            async with asyncio.timeout(20):
                while not found:
                    await asyncio.sleep(0.01)
            assert found == [Verdict.SILENT]
            assert one.is_down(me)
