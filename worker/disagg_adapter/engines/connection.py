"""Connections to an engine, with HTTP/1.1 as far as the adapter needs it.

A general client does several times as much for each piece of a stream, and so for each token.
"""

from __future__ import annotations

import asyncio
import select
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

_CONNECT_S = 2.0
# Engines close idle connections after 5 s. One that is reused in that moment would fail a request.
_IDLE_S = 2.0
# What comes beyond this waits at the engine until what is here has been read.
_MAX_HELD_BYTES = 256 << 10


class Connection(asyncio.Protocol):
    """A connection that carries one request at a time. What breaks it is raised as an OSError."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._lost: OSError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._begin()
        self._ended = True

    def _begin(self) -> None:
        """Expect the answer to a new request."""
        self._status = 0
        self._held_bytes = 0
        self._ended = self._keeps_alive = self._has_length = False
        # The parser calls it, as it calls the other methods that begin with `on_`.
        self._pieces: list[bytes] = []
        self.on_body = self._pieces.append
        self._parser = HttpResponseParser(self)

    # ---- What its user calls ----

    async def ask(self, request: bytes) -> int:
        """Send a request, and return the status of its answer when it comes."""
        self._begin()
        if self._wire.is_closing():
            raise self._lost or ConnectionResetError("the connection is closed")
        self._wire.write(request)
        while not self._status:
            await self._more()
        return self._status

    async def read(self) -> bytes:
        """Return what has come of the body since the last call, b"" at its end."""
        pieces = self._pieces
        while not pieces:
            if self._ended:
                return b""
            await self._more()
        found = b"".join(pieces)
        pieces.clear()
        if self._held_bytes > _MAX_HELD_BYTES and not self._wire.is_closing():
            self._wire.resume_reading()
        self._held_bytes = 0
        return found

    @property
    def reusable(self) -> bool:
        """Whether its last answer was read to its end, and the engine keeps it open."""
        wire = self._wire
        read = self._ended and not self._pieces  # what is not read may have stopped the reading
        return read and self._keeps_alive and not wire.is_closing() and not wire.get_write_buffer_size()

    def is_silent(self) -> bool:
        """Return whether nothing has come that is not read yet, not even the end."""
        poll = select.poll()
        poll.register(self._wire.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        self._wire.abort()

    # ---- What the event loop and the parser call ----

    @property
    def _wire(self) -> asyncio.Transport:
        assert self._transport is not None
        return self._transport

    def _more(self) -> asyncio.Future[None]:
        """Return what to wait for until something has come. Raises OSError if nothing more will."""
        if self._lost is not None:
            raise self._lost
        self._waiter = waiter = self._loop.create_future()
        return waiter

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass

    def data_received(self, data: bytes) -> None:
        self._held_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self._break(f"no HTTP: {error.__context__ or error}")
        if self._held_bytes > _MAX_HELD_BYTES and self._lost is None:
            if self._pieces:
                self._wire.pause_reading()
            else:
                self._break("the head of the answer is too long")
        self._wake()

    def _break(self, why: str) -> None:
        self._lost = ConnectionError(why)
        self.close()

    def eof_received(self) -> None:
        self.close()  # else the transport would wait until the engine has read the whole request

    def connection_lost(self, error: Exception | None) -> None:
        if error is None and self._status and not self._has_length:
            self._ended = True  # such a body ends with the connection
        if self._lost is None:
            self._lost = ConnectionResetError(str(error or "the connection was closed"))
        self._wake()

    def on_message_begin(self) -> None:
        if self._ended:
            raise ValueError("an answer to no request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._has_length = self._has_length or name.lower() in (b"content-length", b"transfer-encoding")

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200:  # those before only announce it
            self._status, self._keeps_alive = status, self._parser.should_keep_alive()

    def on_message_complete(self) -> None:
        self._ended = self._status > 0


class Connections:
    """The connections to one engine, kept open for the next request while they are fresh."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._closed = False

    async def take(self) -> Connection:
        """Return a connection for one request. Raises OSError.

        One that the engine has closed in the meantime is not taken.
        """
        while self._idle:
            connection, timer = self._idle.popitem()
            timer.cancel()
            if connection.reusable and connection.is_silent():
                return connection
            connection.close()
        async with asyncio.timeout(_CONNECT_S):
            return (await asyncio.get_running_loop().create_connection(Connection, *self._address))[1]

    def give_back(self, connection: Connection) -> None:
        """Keep a connection whose answer was read to its end, and close any other."""
        if connection.reusable and not self._closed:
            timer = asyncio.get_running_loop().call_later(_IDLE_S, self._expire, connection)
            self._idle[connection] = timer
        else:
            connection.close()

    def _expire(self, connection: Connection) -> None:
        del self._idle[connection]
        connection.close()

    def close(self) -> None:
        """Close those that are idle now, and each other one when it is given back."""
        self._closed = True
        while self._idle:
            connection, timer = self._idle.popitem()
            timer.cancel()
            connection.close()
