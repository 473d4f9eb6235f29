"""The calls by which the kubelet manages the two containers of a pod."""

from __future__ import annotations

import asyncio

from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from disagg_adapter.server.adapter import Adapter
from disagg_wire.protocol import DRAINED_PATH, LIVE_PATH

_INTERVAL_S = 0.1


def routes(adapter: Adapter) -> list[Route]:
    """Return the calls that only adapters answer."""

    async def live(request: Request) -> Response:
        """Answer while the event loop runs, whatever the engine does."""
        return PlainTextResponse("ok\n")

    async def drained(request: Request) -> Response:
        """Answer when the engine may be stopped: nothing here needs it any more."""
        while not adapter.drained and not await request.is_disconnected():  # noqa: ASYNC110 - of many causes
            await asyncio.sleep(_INTERVAL_S)
        return PlainTextResponse("drained\n")

    return [Route(LIVE_PATH, live), Route(DRAINED_PATH, drained)]
