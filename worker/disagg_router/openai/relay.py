"""Passes requests on to the service beside the deployment, and its answers to the clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable

import aiohttp
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from disagg_router.dispatch.upstream import Upstream
from disagg_router.errors import ApiError
from disagg_router.openai import outcomes
from disagg_router.openai.body import loads
from disagg_router.openai.pumped_response import PumpedResponse, while_connected
from disagg_router.openai.stream_times import StreamTimes
from disagg_router.router import Router
from disagg_wire import series

_PASSED_BACK = frozenset(
    (b"cache-control", b"content-encoding", b"content-type", b"retry-after", b"www-authenticate", b"x-request-id")
)
_EVENTS = "text/event-stream"


class RelayedResponse(PumpedResponse):
    """An answer that somebody else gives, passed on piece by piece.

    However it ends, `calls` is closed, and `ended` is called once after that.
    """

    def __init__(
        self,
        answer: aiohttp.ClientResponse,
        pieces: AsyncGenerator[bytes],
        calls: contextlib.AsyncExitStack,
        ended: Callable[[], None],
    ) -> None:
        async def all_ended() -> None:
            await calls.aclose()
            ended()

        # As they came: the bytes of others need be no text of any encoding.
        lowered = ((name.lower(), value) for name, value in answer.raw_headers)
        passed = [header for header in lowered if header[0] in _PASSED_BACK]
        super().__init__(answer.status, passed, pieces, all_ended)


async def relayed(router: Router, upstream: Upstream, request: Request, body: bytes, arrived_s: float) -> Response:
    """Return the answer of the service, once it has begun. Raises ApiError and ClientDisconnect."""
    asked = loads(body)
    streamed = isinstance(asked, dict) and asked.get("stream") is True
    objectives = router.settings.objectives.without_patience()
    times = StreamTimes(arrived_s)

    def count() -> None:
        kept = times.kept(objectives, time.monotonic())
        if streamed and kept is not None:
            router.split.count(series.UPSTREAM, within=kept, ttft_s=times.ttft_s, tpot_s=times.tpot_s)

    deadline_s = asyncio.get_running_loop().time() + router.settings.request_timeout_s
    async with contextlib.AsyncExitStack() as calls:
        calls.enter_context(router.work())
        asking = upstream.ask(request.url.path, body, request.headers, streamed=streamed)
        try:
            answer = await while_connected(request.receive, calls.enter_async_context(asking))
        except ApiError as error:
            if outcomes.tells_of_service(error.status):
                times.failed = True
                count()
            raise
        except ClientDisconnect:
            count()  # who had waited for too long has seen that
            raise
        times.failed = outcomes.tells_of_service(answer.status)
        # What the client is to blame for tells nothing of the service.
        tells = answer.status == 200 or times.failed
        pieces = _pieces(upstream.pieces(answer, deadline_s), answer, times)
        return RelayedResponse(answer, pieces, calls.pop_all(), count if tells else lambda: None)


async def _pieces(
    pieces: AsyncGenerator[bytes], answer: aiohttp.ClientResponse, times: StreamTimes
) -> AsyncGenerator[bytes]:
    """Yield the pieces of an answer. A stream that breaks off ends with an error event."""
    events = answer.headers.get("content-type", "").startswith(_EVENTS)
    try:
        async with contextlib.aclosing(pieces):
            async for piece in pieces:
                if events:
                    times.feed(piece, time.monotonic())
                yield piece
    except ApiError as error:
        times.failed = True
        if not events:
            raise
        yield b"\n\ndata: " + json.dumps(error.body()).encode() + b"\n\n"
