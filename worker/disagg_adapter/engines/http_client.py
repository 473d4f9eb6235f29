"""The HTTP client for the engine beside the adapter."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any
from urllib.parse import urlsplit

from pydantic_core import from_json

from disagg_adapter.engines.connection import Connection, Connections
from disagg_adapter.engines.contract import EngineFault
from disagg_wire import codes

_MAX_EVENT_BYTES = 4 << 20
_MAX_ANSWER_BYTES = 16 << 20
# A stream is at its end when it has said so.
_REST_S = 1.0


class EngineAnswer(Exception):
    """Raised for an answer with a status of 400 or more; `message` is the engine's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"HTTP {status}: {message}")
        self.status = status
        self.message = message


class EngineHttp:
    """A client for one engine. Engines are never reached through a proxy."""

    def __init__(self, url: str, key: str | None = None) -> None:
        self.url = url
        self.key = key
        place = urlsplit(url)
        self._base = place.path
        self._connections = Connections(place.hostname or "", place.port or 80)
        bearer = "" if key is None else f"authorization: Bearer {key}\r\n"
        self._headers = (
            f"host: {place.netloc}\r\naccept-encoding: identity\r\ncontent-type: application/json\r\n{bearer}"
        )

    async def close(self) -> None:
        self._connections.close()

    async def text(self, path: str, timeout_s: float) -> str:
        """Return the text of a GET. Raises EngineAnswer or EngineFault."""
        return await self._whole("GET", path, None, timeout_s)

    async def json(self, path: str, timeout_s: float, body: Any = None) -> Any:
        """Return the JSON of a GET, or of a POST if there is a body.

        Raises EngineAnswer or EngineFault.
        """
        answer = await self._whole("GET" if body is None else "POST", path, body, timeout_s)
        try:
            return json.loads(answer)
        except ValueError:
            raise EngineFault(codes.INTERNAL, f"the engine's answer to {path} is no JSON") from None

    async def send(self, path: str, body: Any, timeout_s: float) -> None:
        """Make a POST whose answer says nothing. Raises EngineAnswer or EngineFault."""
        await self._whole("POST", path, body, timeout_s)

    async def _whole(self, method: str, path: str, body: Any, timeout_s: float) -> str:
        with _breaks(path):
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._once(method, path, body)
                except ConnectionResetError:
                    if method != "GET":  # engines do not survive each request that is made twice
                        raise
                    return await self._once(method, path, body)

    async def _once(self, method: str, path: str, body: Any) -> str:
        async with self._request(method, path, body) as answer:
            return await _read(answer)

    @contextlib.asynccontextmanager
    async def events(self, path: str, body: Any) -> AsyncIterator[AsyncGenerator[Any]]:
        """Yield the JSON objects of a stream of server-sent events.

        Leaving the context closes the connection, by which engines notice a cancellation. Raises
        EngineAnswer or EngineFault.
        """
        with _breaks(path):
            async with self._request("POST", path, body) as answer:
                yield _events(answer, path)

    @contextlib.asynccontextmanager
    async def _request(self, method: str, path: str, body: Any) -> AsyncIterator[Connection]:
        """Send a request, and yield its connection when the answer has begun.

        Raises ValueError for a key that is no header, which another adapter may have sent.
        """
        if not (self.key or "").isprintable():
            raise ValueError("the engine's key has characters that no header may have")
        content = b"" if body is None else json.dumps(body, separators=(",", ":")).encode()
        head = f"{method} {self._base}{path} HTTP/1.1\r\n{self._headers}content-length: {len(content)}\r\n\r\n"
        connection = await self._connections.take()
        try:
            status = await connection.ask(head.encode() + content)
            if status >= 400:
                raise EngineAnswer(status, message_of(await _read(connection)))
            yield connection
        finally:
            self._connections.give_back(connection)


@contextlib.contextmanager
def _breaks(path: str) -> Iterator[None]:
    """Turn what breaks a connection, a timeout included, into the fault that it is."""
    try:
        yield
    except OSError as error:
        why = str(error) or type(error).__name__
        gone = isinstance(error, ConnectionRefusedError)
        raise EngineFault(codes.INTERNAL, f"the engine does not answer {path}: {why}", is_gone=gone) from None


async def _read(answer: Connection) -> str:
    body = bytearray()
    while piece := await answer.read():
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            raise EngineFault(codes.INTERNAL, "the engine's answer is too long")
    return body.decode(errors="replace")


async def _events(answer: Connection, path: str) -> AsyncGenerator[Any]:
    """Yield what follows `data:` up to `[DONE]`. A stream that ends without it was broken off."""
    held = b""
    with _breaks(path):
        while piece := await answer.read():
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    await _to_the_end(answer)
                    return
                yield _json_of(data, path)
            if len(held) > _MAX_EVENT_BYTES:
                raise EngineFault(codes.INTERNAL, f"an event of {path} is too long")
    raise EngineFault(codes.INTERNAL, f"the engine's stream of {path} broke off")


def _json_of(data: bytes, path: str) -> Any:
    try:
        return from_json(data)
    except ValueError:
        raise EngineFault(codes.INTERNAL, f"an event of {path} is no JSON") from None


async def _to_the_end(answer: Connection) -> None:
    """Read what is left, so that the connection serves the next request too."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REST_S):
            while await answer.read():
                pass


def message_of(body: str) -> str:
    """Return the message in an engine's error answer, in whichever of the usual places it is."""
    try:
        found = json.loads(body)
    except ValueError:
        return body.strip()[:500]
    for name in ("error", "message", "detail"):
        if isinstance(found, dict) and name in found:
            found = found[name]
            if isinstance(found, dict):
                found = found.get("message", found)
            break
    return (found if isinstance(found, str) else json.dumps(found))[:500]
