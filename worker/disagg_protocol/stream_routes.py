"""The calls with which a router finds streams that are kept, reads them on, or ends them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from disagg_protocol import bodies
from disagg_protocol.endpoint import Endpoint
from disagg_protocol.errors import NoCapacity
from disagg_protocol.event_stream import NdjsonResponse
from disagg_protocol.stream_store import StreamKey
from disagg_wire import codes
from disagg_wire.protocol import STREAMS_PATH
from disagg_wire.request_bodies import RequestBodies

# A stream that is read again ends with its job, or with its reader.
_LONGEST_S = 86400.0


def _error(status: int, code: str, message: str, *, retryable: bool = False) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "retryable": retryable}}, status)


def _key(request: Request) -> StreamKey | None:
    asked = request.query_params
    epoch = asked.get("epoch", "")
    if not (epoch.isascii() and epoch.isdecimal() and len(epoch) < 10):
        return None
    return StreamKey(request.path_params["name"], asked.get("run", ""), int(epoch), asked.get("leg", ""))


def stream_routes(worker: Endpoint, pending: RequestBodies) -> list[Route]:
    """Return the routes. All of them are for routers alone."""

    async def find(request: Request) -> Response:
        """Answer what is kept under each of the names that the body has."""
        try:
            async with pending.read(request.stream()) as body:
                names = bodies.parse_streams(body).names
        except bodies.BadRequest as error:
            return _error(400, codes.INVALID_REQUEST, str(error))
        except NoCapacity as error:
            return _error(429, codes.NO_CAPACITY, str(error), retryable=True)
        except ClientDisconnect:
            return _error(400, codes.CANCELLED, "the client went away")
        found = worker.answers.store.find(dict.fromkeys(names), time.monotonic())
        return JSONResponse({"streams": [record.described() for record in found]})

    async def read(request: Request) -> Response:
        """Answer with the stream from its first token on, and with what is still being made."""
        key = _key(request)
        opened = None if key is None else worker.answers.open(key)
        if opened is None:
            return _error(404, codes.UNKNOWN_STREAM, "nothing is kept under this name")
        return NdjsonResponse(*opened, time.monotonic() + _LONGEST_S)

    async def stop(request: Request) -> Response:
        """End what is made of one attempt. What has been made is still kept."""
        if (key := _key(request)) is not None:
            worker.answers.stop(*key[:3])
        return Response(status_code=204)

    def allowed(call: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            if not worker.authorized(request):
                return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
            return await call(request)

        return endpoint

    return [
        Route(STREAMS_PATH, allowed(find), methods=["POST"]),
        Route(STREAMS_PATH + "/{name}", allowed(read), methods=["GET"]),
        Route(STREAMS_PATH + "/{name}", allowed(stop), methods=["DELETE"]),
    ]
