"""Tests of what of a request is sent once it may be."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.certificates import Certificate, certificate

from disagg_operator.kube.connections import Connections
from disagg_operator.kube.credentials import Credentials

SIZE = 150_000


class SlowServer:
    """A server whose network has small segments, so that a kernel lends little room to a client.

    It reads one request, and answers it.
    """

    def __init__(self, identity: Certificate) -> None:
        self._context = identity.server_context()
        self._socket = socket.socket()
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        self._socket.bind(("127.0.0.1", 0))
        self._socket.listen()
        self.url = f"https://127.0.0.1:{self._socket.getsockname()[1]}"
        self.read = 0
        self.all_there = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        with self._socket, self._context.wrap_socket(self._socket.accept()[0], server_side=True) as connection:
            while self.read < SIZE and (got := connection.recv(1 << 20)):
                self.read += len(got)
            self.all_there.set()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    def join(self) -> None:
        self._thread.join(5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[SlowServer]:
    running = SlowServer(certificate(tmp_path, "server"))
    yield running
    running.join()


async def test_a_process_that_is_stopped_has_sent_all_of_a_request_or_nothing(server: SlowServer) -> None:
    loop, connections = asyncio.get_running_loop(), Connections(Credentials(server.url, insecure=True))
    there: list[bool] = []

    def may_send() -> bool:
        # The process stands still as soon as it has begun to send.
        loop.call_soon(lambda: there.append(server.all_there.wait(3)))
        return True

    async with asyncio.timeout(20):
        reply = await connections.send("PATCH", "/x", content=b"x" * SIZE, may_send=may_send)
    await connections.close()
    assert (reply.status, there) == (200, [True])
