"""The HTTP client for the engine beside the adapter."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import aiohttp

from disagg_adapter.engines.contract import EngineFault
from disagg_wire import codes

_MAX_EVENT_BYTES = 4 << 20
_MAX_ANSWER_BYTES = 16 << 20
_MAX_PIECE_BYTES = 1 << 20
_CONNECT_S = 2.0
_DECODER = json.JSONDecoder()
# Engines close idle connections after 5 s. One that is reused in that moment would fail a request.
_IDLE_S = 2.0
_JSON = {"content-type": "application/json"}
# A stream is at its end when it has said so.
_REST_S = 1.0
_BROKEN = (aiohttp.ClientError, OSError, asyncio.TimeoutError)


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
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._session: aiohttp.ClientSession | None = None  # created within a running loop

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_IDLE_S),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

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
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._open().request(
                    method, self.url + path, data=_payload(body), headers=_JSON, allow_redirects=False
                ) as answer,
            ):
                content = await _read(answer)
                if answer.status >= 400:
                    raise EngineAnswer(answer.status, message_of(content))
                return content
        except _BROKEN as error:
            raise _lost(path, error) from None

    @contextlib.asynccontextmanager
    async def events(self, path: str, body: Any) -> AsyncIterator[AsyncGenerator[Any]]:
        """Yield the JSON objects of a stream of server-sent events.

        Leaving the context closes the connection, by which engines notice a cancellation. Raises
        EngineAnswer or EngineFault.
        """
        try:
            async with self._open().post(
                self.url + path, data=_payload(body), headers=_JSON, allow_redirects=False
            ) as answer:
                if answer.status >= 400:
                    raise EngineAnswer(answer.status, message_of(await _read(answer)))
                yield _events(answer, path)
        except _BROKEN as error:
            raise _lost(path, error) from None


def _payload(body: Any) -> bytes | io.BytesIO | None:
    """Return a body as JSON, as a file if it is so long that aiohttp sends it in pieces."""
    if body is None:
        return None
    content = json.dumps(body, separators=(",", ":")).encode()
    return content if len(content) <= _MAX_PIECE_BYTES else io.BytesIO(content)


async def _read(answer: aiohttp.ClientResponse) -> str:
    body = b""
    while piece := await answer.content.read(1 << 16):
        body += piece
        if len(body) > _MAX_ANSWER_BYTES:
            raise EngineFault(codes.INTERNAL, "the engine's answer is too long")
    return body.decode(errors="replace")


async def _events(answer: aiohttp.ClientResponse, path: str) -> AsyncGenerator[Any]:
    """Yield what follows `data:` up to `[DONE]`. A stream that ends without it was broken off."""
    held = b""
    try:
        async for piece in answer.content.iter_any():
            *lines, held = (held + piece).split(b"\n")
            for line in lines:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    await _to_the_end(answer)
                    return
                yield _decoded(data)
            if len(held) > _MAX_EVENT_BYTES:
                raise EngineFault(codes.INTERNAL, f"an event of {path} is too long")
    except ValueError:
        raise EngineFault(codes.INTERNAL, f"an event of {path} is no JSON") from None
    except _BROKEN as error:
        raise _lost(path, error) from None
    raise EngineFault(codes.INTERNAL, f"the engine's stream of {path} broke off")


def _decoded(data: bytes) -> Any:
    """Return what `json.loads` does, in half the time for the short texts of a stream."""
    text = data.decode()
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise ValueError(f"more than one value: {text[end : end + 20]!r}")
    return value


async def _to_the_end(answer: aiohttp.ClientResponse) -> None:
    """Read what is left, so that the connection serves the next request too."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_REST_S):
            async for _ in answer.content.iter_any():
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


def _lost(path: str, error: BaseException) -> EngineFault:
    return EngineFault(codes.INTERNAL, f"the engine does not answer {path}: {str(error) or type(error).__name__}")
