"""A generator of load that costs little: requests at given times, whose streams it only scans."""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import cast

from benchmarks.router.simulated_workers import MODEL

PROMPT = "def handle(self, request):\n    return self.respond(request, status=200)\n" * 12
_TEXT, _END = b'"text":"', b"\r\n0\r\n\r\n"


@dataclass(frozen=True)
class Load:
    """Requests that arrive at random times, at a rate."""

    rate: float
    seconds: float
    tokens: int
    pause_us: int
    """Between two tokens of a stream."""


@dataclass
class Measured:
    """What one run has seen."""

    ttft_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    """How much later than planned the requests were sent: what the generator itself adds."""
    events: int = 0
    generator_share: float = 0.0
    """The part of a core that the generator has used."""
    processor_s: float = 0.0
    """The processor time of what is measured."""

    @property
    def requests(self) -> int:
        return len(self.ttft_s)

    def quantile_ms(self, values: Sequence[float], percent: int) -> float:
        return 1e3 * statistics.quantiles(values, n=100)[percent - 1]


class _Connection(asyncio.Protocol):
    """A connection that is kept; it has one request at a time."""

    def __init__(self) -> None:
        self._ended: asyncio.Future[None] | None = None
        self._first_s = 0.0
        self._events = 0
        self._tail = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)

    async def ask(self, request: bytes) -> tuple[float, int]:
        """Return the seconds to the first token, and the number of events with text."""
        self._ended, self._first_s, self._events, self._tail = asyncio.get_running_loop().create_future(), 0.0, 0, b""
        began_s = time.perf_counter()
        self._transport.write(request)
        await self._ended
        return self._first_s - began_s, self._events

    def data_received(self, data: bytes) -> None:
        seen = self._tail + data
        found = seen.count(_TEXT)
        if found and not self._first_s:
            self._first_s = time.perf_counter()
        self._events += found
        # What may be the beginning of a word that goes on in the next piece.
        self._tail = seen[-len(_TEXT) + 1 :]
        if seen.endswith(_END) or data.endswith(_END):
            self._over(None if self._first_s else RuntimeError(f"no token: {seen[:500]!r}"))
        elif not self._first_s and not seen.startswith(b"HTTP/1.1 200"):
            self._over(RuntimeError(f"refused: {seen[:500]!r}"))

    @property
    def is_closed(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        self._transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self._over(error or ConnectionError("the connection was closed"))

    def _over(self, error: Exception | None) -> None:
        if self._ended is None or self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)


class Generator:
    """Sends requests to one port, over connections that it keeps."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[_Connection] = []

    def close(self) -> None:
        """Close the connections, none of which may have a request."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    async def _ask(self, request: bytes, tokens: int, out: Measured) -> None:
        # A server may end a connection on which it has answered for long enough.
        connection = None
        while self._idle and (connection is None or connection.is_closed):
            connection = self._idle.pop()
        if connection is None or connection.is_closed:
            loop = asyncio.get_running_loop()
            _, connection = await loop.create_connection(_Connection, "127.0.0.1", self._port)
        ttft_s, events = await connection.ask(request)
        self._idle.append(connection)
        out.ttft_s.append(ttft_s)
        # The router has one more event, which tells why the stream ends.
        out.events += min(events, tokens)

    async def run(self, load: Load, seed: int) -> Measured:
        """Send the requests of a load, and wait for all answers."""
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": load.tokens, "seed": load.pause_us}
        content = json.dumps(body | {"temperature": 0, "stream": True}).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nhost: bench\r\ncontent-length: {len(content)}\r\n\r\n"
        request, draw, out = head.encode() + content, random.Random(seed), Measured()
        began_s, used_s = time.perf_counter(), time.process_time()
        async with asyncio.timeout(10 * load.seconds + 60), asyncio.TaskGroup() as tasks:
            due_s = began_s
            while (due_s := due_s + draw.expovariate(load.rate)) < began_s + load.seconds:
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))
                out.late_s.append(time.perf_counter() - due_s)
                tasks.create_task(self._ask(request, load.tokens, out))
        out.generator_share = (time.process_time() - used_s) / (time.perf_counter() - began_s)
        return out
