"""The client for the workers: info, tokenizer, and the two streams."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import httpx
from aiohttp.connector import AddrInfoType

from disagg_router.errors import ROUTER_EXHAUSTED, AttemptFailed, NoRoom
from disagg_router.workers.kept_streams import KeptStream, parse_streams
from disagg_router.workers.worker_info import Worker
from disagg_wire import codes
from disagg_wire.protocol import (
    DECODE_ROOM_PATH,
    INFO_PATH,
    LAST_RESORT_HEADER,
    PULSE_PATH,
    ROUTER_HEADER,
    ROUTER_NEEDS,
    ROUTER_WATCHES,
    STREAMS_PATH,
    WORK_PATHS,
)
from disagg_wire.pulse import Beat
from disagg_wire.pulse import parse as parse_beat
from disagg_wire.room import Room

log = logging.getLogger(__name__)
_MAX_LINE_BYTES = 1 << 20
# The most bytes of an answer that is read as a whole.
_MOST_ANSWER_BYTES = 1 << 20
# What this process, and no worker, lacks when a connection cannot be opened for such a reason.
_OWN_LACK = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)
# How long a worker may take to say what it keeps, or to hear that it may stop, and the most bytes
# that it says.
_FIND_S = 2.0
_MOST_FOUND_BYTES = 4 << 20
_MOST_TELLING = 1024
_TICKET_FIELD = "ticket"
Line = dict[str, Any]
# How often the kernel asks again for a connection: it gives up after 2 to 3 s. A timer of this
# process would also run out while the process itself stands still, for all workers at once.
_SYN_RETRIES = 1
# For what the kernel does not bound.
_CONNECT_S = 15.0
# The exceptions of a connection that fails.
_BROKEN = (aiohttp.ClientError, OSError)


def _socket(address: AddrInfoType) -> socket.socket:
    """Return a socket that finds out soon that nobody answers at an address."""
    family, kind, protocol, _, _ = address
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, _SYN_RETRIES)
    return sock


class WorkerClient:
    """A client for the protocol in docs/protocol.md.

    Connections are pooled. The two streams of each request use aiohttp: httpx looks at every
    connection of its pool at the beginning and at the end of each request, and needs several times
    the processor time for each piece of a stream.
    """

    def __init__(self, bearer: str) -> None:
        # Each attempt decides, and bounds, how long to wait for events.
        timeout = httpx.Timeout(None, connect=2.0, write=10.0, pool=5.0)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=256)
        # An answer that is compressed could be small on the wire alone.
        self._headers = {"authorization": f"Bearer {bearer}", "accept-encoding": "identity"}
        self._http = httpx.AsyncClient(headers=self._headers, timeout=timeout, limits=limits, trust_env=False)
        self._streams: aiohttp.ClientSession | None = None  # created within a running loop
        self._telling: set[asyncio.Task[None]] = set()

    async def info(self, url: str, *, needs: bool) -> dict[str, Any]:
        """Return what a worker says of itself, and tell it whether it may have to take requests
        after SIGTERM. Raises httpx.HTTPError or ValueError.
        """
        return await self.get(url, INFO_PATH, headers={ROUTER_HEADER: ROUTER_NEEDS if needs else ROUTER_WATCHES})

    async def get(
        self,
        url: str,
        path: str,
        timeout_s: float = 2.0,
        headers: Mapping[str, str] | None = None,
        most_bytes: int = _MOST_ANSWER_BYTES,
    ) -> dict[str, Any]:
        """Return a JSON object, which is there as a whole within `timeout_s` and has at most
        `most_bytes`. Raises httpx.HTTPError or ValueError.
        """
        body = await self._answer("GET", url + path, timeout_s, most_bytes, headers=headers)
        try:
            content = json.loads(body)
        except RecursionError:
            raise ValueError(f"{path}: too deep") from None
        if not isinstance(content, dict):
            raise ValueError(f"{path}: not an object")
        return content

    async def post(self, url: str, path: str, content: dict[str, Any], timeout_s: float = 2.0) -> None:
        """Send a JSON object. Raises httpx.HTTPError or ValueError."""
        await self._answer("POST", url + path, timeout_s, _MOST_ANSWER_BYTES, json=content)

    async def _answer(self, method: str, url: str, timeout_s: float, most_bytes: int, **more: Any) -> bytes:
        body = bytearray()
        try:
            # The limits of the client are for each piece: an answer could drip in without end.
            async with (
                asyncio.timeout(timeout_s),
                self._http.stream(method, url, timeout=timeout_s, **more) as answer,
            ):
                answer.raise_for_status()
                async for piece in answer.aiter_raw():
                    body += piece
                    if len(body) > most_bytes:
                        raise ValueError(f"{url}: the answer has over {most_bytes} bytes")
        except TimeoutError:
            raise httpx.ReadTimeout(f"not answered within {timeout_s:g} s") from None
        return bytes(body)

    async def tell_room(self, prefill: Worker, room: Room) -> None:
        """Tell a prefill worker the room of decode.

        This is best effort, because each request that goes there carries it too.
        """
        try:
            await self.post(prefill.url, DECODE_ROOM_PATH, room.to_json())
        except (httpx.HTTPError, ValueError) as error:
            log.debug("worker %s was not told of decode's room: %s", prefill.pod, str(error) or type(error).__name__)

    @asynccontextmanager
    async def stream(self, worker: Worker, role: str, body: Line) -> AsyncIterator[AsyncGenerator[Line]]:
        """Yield the events of one call.

        Leaving the context cancels the call at the worker. Raises NoRoom or AttemptFailed.
        """
        try:
            async with self._session().post(
                f"{worker.url}{WORK_PATHS[role]}",
                json=body,
                headers={LAST_RESORT_HEADER: "yes"} if worker.last_resort else None,
                allow_redirects=False,
            ) as answer:
                if answer.status != 200:
                    raise _refusal(
                        worker,
                        role,
                        answer.status,
                        await _whole(answer.content),
                        has_ticket=body.get("ticket") is not None,
                    )
                yield self._lines(worker, answer)
        except _BROKEN as error:
            raise _broken(worker, error) from None

    async def find_streams(self, worker: Worker, names: Sequence[str]) -> list[KeptStream]:
        """Return what a worker keeps under some names. Raises httpx.HTTPError or ValueError."""
        sent = {"names": list(names)}
        body = await self._answer("POST", worker.url + STREAMS_PATH, _FIND_S, _MOST_FOUND_BYTES, json=sent)
        return parse_streams(worker, body)

    @asynccontextmanager
    async def kept(self, stream: KeptStream) -> AsyncIterator[AsyncGenerator[Line]]:
        """Yield the events of a kept stream, and what is still being made of it.

        Raises AttemptFailed, which blames nobody.
        """
        worker = stream.worker
        asked = {"run": stream.run, "epoch": str(stream.epoch), "leg": stream.leg}
        try:
            async with self._session().get(
                f"{worker.url}{STREAMS_PATH}/{stream.name}", params=asked, allow_redirects=False
            ) as answer:
                if answer.status != 200:
                    raise AttemptFailed(f"{worker.pod}: HTTP {answer.status}", reason=codes.UNKNOWN_STREAM)
                yield self._lines(worker, answer)
        except _BROKEN as error:
            raise _broken(worker, error) from None

    def stop_soon(self, worker: Worker, name: str, run: str, epoch: int) -> None:
        """Tell a worker that no more is needed of a stream that it would keep.

        This is best effort: without it, the worker ends it a little later.
        """
        if len(self._telling) < _MOST_TELLING:
            task = asyncio.create_task(self._stop(worker, name, {"run": run, "epoch": epoch}))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _stop(self, worker: Worker, name: str, asked: dict[str, Any]) -> None:
        try:
            async with (
                asyncio.timeout(_FIND_S),
                self._session().delete(f"{worker.url}{STREAMS_PATH}/{name}", params=asked, allow_redirects=False),
            ):
                pass
        except (*_BROKEN, TimeoutError) as error:
            log.debug("worker %s was not told to stop: %s", worker.pod, str(error) or type(error).__name__)

    async def beats(self, worker: Worker) -> AsyncGenerator[Beat]:
        """Yield the beats of a worker until its stream ends. Of those that have come at once, the
        last one counts.

        Raises AttemptFailed if it breaks, and ValueError. The caller bounds the wait for each.
        """
        try:
            async with self._session().get(worker.url + PULSE_PATH, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise ValueError(f"HTTP {answer.status}")
                async for lines in _split_each(answer.content.iter_any()):
                    if lines:
                        yield parse_beat(lines[-1])
        except _BROKEN as error:
            raise _broken(worker, error) from None

    def _session(self) -> aiohttp.ClientSession:
        if self._streams is None:
            self._streams = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_socket),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
            )
        return self._streams

    @staticmethod
    async def _lines(worker: Worker, answer: aiohttp.ClientResponse) -> AsyncGenerator[Line]:
        try:
            async for text in _split(answer.content.iter_any()):
                line = json.loads(text)
                yield line
                if line["type"] in ("end", "error"):
                    return
        except _BROKEN as error:
            raise _broken(worker, error) from None
        except (ValueError, KeyError, TypeError, RecursionError):
            raise AttemptFailed(
                f"{worker.pod}: garbled event", reason="protocol", blame=(worker.incarnation,)
            ) from None
        raise AttemptFailed(f"{worker.pod}: the stream broke off", reason="worker_lost", blame=(worker.incarnation,))

    async def close(self) -> None:
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)
        if self._streams is not None:
            await self._streams.close()
        await self._http.aclose()


async def _whole(content: aiohttp.StreamReader) -> bytes:
    """Return a short body that may come in several pieces, cut off at _MAX_LINE_BYTES."""
    body = b""
    while len(body) < _MAX_LINE_BYTES and (piece := await content.read(_MAX_LINE_BYTES - len(body))):
        body += piece
    return body


async def _split_each(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes]]:
    """Yield the lines that end in each chunk, split at line feeds alone and not at U+2028 and the
    like.

    Raises ValueError for a line longer than _MAX_LINE_BYTES.
    """
    held = b""
    async for chunk in chunks:
        *lines, held = (held + chunk).split(b"\n")
        yield lines
        if len(held) > _MAX_LINE_BYTES:
            raise ValueError("event too long")


async def _split(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """Yield the lines one by one."""
    async for lines in _split_each(chunks):
        for line in lines:
            yield line


def _broken(worker: Worker, error: Exception) -> AttemptFailed:
    if getattr(getattr(error, "os_error", error), "errno", None) in _OWN_LACK:
        return AttemptFailed(f"this router cannot connect to {worker.pod}: {error}", reason=ROUTER_EXHAUSTED)
    return AttemptFailed(f"{worker.pod}: {type(error).__name__}", reason="worker_lost", blame=(worker.incarnation,))


def _may_fit_elsewhere(code: str, message: str) -> bool:
    """Return whether a request that decode took, but prefill did not, may succeed on another pair.

    A field that is refused is refused everywhere. A ticket is another one each time; up to release
    0.1.0 its refusal has the code of a wrong field, and a message that begins with the field.
    """
    return code != codes.INVALID_REQUEST or message.startswith(_TICKET_FIELD)


def _refusal(worker: Worker, role: str, status: int, body: bytes, *, has_ticket: bool) -> Exception:
    """Return the error that an answer with a status other than 200 means.

    `has_ticket` is set if decode has taken the same request, so that it may be the ticket that is
    refused.
    """
    try:
        error = json.loads(body)["error"]
        code, message = str(error["code"]), str(error["message"])
    except (ValueError, KeyError, TypeError):
        code, message = codes.INTERNAL, f"HTTP {status}"
    if status in (429, 503):
        return NoRoom(role, f"{worker.pod}: {message}", reason=code)
    if status in (400, 413):
        return AttemptFailed(message, reason=code, retryable=has_ticket and _may_fit_elsewhere(code, message))
    return AttemptFailed(f"{worker.pod}: {message}", reason=code, blame=(worker.incarnation,))
