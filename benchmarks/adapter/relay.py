"""A relay that passes bytes on between two sockets and reads nothing of them.

It is the least that a process between client and engine can cost in this language.
`python -m benchmarks.adapter.relay PORT TARGET_PORT` serves it.
"""

from __future__ import annotations

import asyncio
import sys
from typing import cast

import uvloop


class _End(asyncio.Protocol):
    """One of the two connections; what comes on it is written to the other."""

    def __init__(self) -> None:
        self.other: _End | None = None
        self.transport: asyncio.WriteTransport | None = None
        self._early: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.WriteTransport, transport)  # uvloop's is no subclass
        self.transport.write(b"".join(self._early))

    def send(self, data: bytes) -> None:
        if self.transport is None:
            self._early.append(data)
        else:
            self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        assert self.other is not None
        self.other.send(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()


class _Client(_End):
    """A client's connection, which opens the one to the target."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self._target = target
        self._connecting: asyncio.Task[object] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.other = engine = _End()
        engine.other = self
        loop = asyncio.get_running_loop()
        connect = loop.create_connection(lambda: engine, "127.0.0.1", self._target)
        self._connecting = asyncio.ensure_future(connect)


async def _serve(port: int, target: int) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: _Client(target), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(int(sys.argv[1]), int(sys.argv[2])))
