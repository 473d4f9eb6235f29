"""The HTTP endpoints of a worker (docs/protocol.md): health, metrics, identity, change of role,
notice to leave, and the two calls that do work.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from disagg_protocol import bodies, body_errors
from disagg_protocol.endpoint import Endpoint, OtherModel, RoleChanging
from disagg_protocol.errors import InvalidInput, NoCapacity
from disagg_protocol.event_stream import SERVER_SEND, NdjsonResponse
from disagg_protocol.requests import Job
from disagg_protocol.stream_routes import stream_routes
from disagg_protocol.stream_store import StreamRecord, record_of
from disagg_protocol.ticket import TicketError, token_hash, verify
from disagg_wire import codes
from disagg_wire.protocol import (
    DECODE_PATH,
    DECODE_ROOM_PATH,
    DRAIN_PATH,
    DRAINING,
    HEALTH_PATH,
    INFO_PATH,
    LAST_RESORT_HEADER,
    METRICS_PATH,
    PREFILL_PATH,
    READY,
    READY_PATH,
    ROLE_PATH,
    ROUTER_HEADER,
    ROUTER_NEEDS,
    STARTING,
    TOKENIZER_PATH,
)
from disagg_wire.request_bodies import RequestBodies

log = logging.getLogger(__name__)


def _error(status: int, code: str, message: str, *, retryable: bool = False) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "retryable": retryable}}, status)


def _check(worker: Endpoint, request: bodies.DecodeRequest | bodies.PrefillRequest) -> None:
    """Raise OtherModel or PromptTooLong for a request that this model cannot serve."""
    if request.digest not in (None, worker.model_digest):
        raise OtherModel
    tokens, limit = len(request.tokens), worker.max_model_len
    if tokens >= limit:
        raise bodies.PromptTooLong(f"tokens: {tokens} and at least one more do not fit max_model_len {limit}")


async def _start_decode(worker: Endpoint, body: bytes) -> tuple[Job, StreamRecord | None]:
    request = bodies.parse(bodies.DecodeRequest, body)
    due_s = request.due_s(time.monotonic())
    _check(worker, request)
    return await worker.start_decode(request, due_s), record_of(request)


async def _start_prefill(worker: Endpoint, body: bytes) -> tuple[Job, StreamRecord | None]:
    request = bodies.parse(bodies.PrefillRequest, body)
    due_s = request.due_s(time.monotonic())
    _check(worker, request)
    ticket = None
    if request.ticket is not None:
        ticket = verify(worker.key, request.ticket)
        if ticket.compat != worker.compat:
            raise TicketError("ticket.compat: the decode worker's KV layout or model is another one")
        if (ticket.request_id, ticket.epoch) != (request.request_id, request.epoch):
            raise TicketError("ticket: is for another request")
        if (ticket.tokens, ticket.token_hash) != (len(request.tokens), token_hash(request.tokens)):
            raise TicketError("ticket.token_hash: is for other tokens")
        if ticket.bound and ticket.prefill_incarnation != worker.incarnation:
            raise TicketError("ticket.prefill_incarnation: is for another worker")
    return await worker.start_prefill(request, ticket, due_s), record_of(request)


Start = Callable[[Endpoint, bytes], Awaitable[tuple[Job, StreamRecord | None]]]
OrderT = TypeVar("OrderT")


def _work_endpoint(
    worker: Endpoint, pending: RequestBodies, roles: tuple[str, ...], start: Start
) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        if worker.state == DRAINING and not (LAST_RESORT_HEADER in request.headers and worker.takes_last_resort):
            return _error(503, codes.DRAINING, "this worker takes no new requests", retryable=True)
        if not worker.serving:
            return _error(503, codes.STARTING, "the model is still loading", retryable=True)
        if worker.role not in roles:
            # The router has not heard of a change of role yet; another worker will take the
            # request.
            return _error(503, codes.OTHER_ROLE, f"this worker's role is {worker.role}", retryable=True)
        if worker.full:
            return _error(429, codes.NO_CAPACITY, f"{worker.active} requests are here already", retryable=True)
        worker.enter()
        job = record = None
        try:
            async with pending.read(request.stream()) as body:
                job, record = await start(worker, body)
        except bodies.PromptTooLong as error:
            return _error(413, codes.PROMPT_TOO_LONG, str(error))
        except OtherModel:
            # The router has not heard yet that another process has this address now.
            return _error(503, codes.OTHER_MODEL, "this worker has other weights", retryable=True)
        except TicketError as error:
            return _error(400, codes.TICKET_REFUSED, str(error))
        except (bodies.BadRequest, InvalidInput) as error:
            return _error(400, codes.INVALID_REQUEST, str(error))
        except NoCapacity as error:
            worker.refused()
            return _error(429, codes.NO_CAPACITY, str(error), retryable=True)
        except ClientDisconnect:
            return _error(400, codes.CANCELLED, "the client went away")
        except Exception:
            log.exception("a request failed")
            return _error(500, codes.INTERNAL, "internal error; see the worker's log", retryable=True)
        finally:
            if job is None:
                worker.leave()
        close = worker.keep(job)
        if record is not None and worker.answers.limits.keep_s > 0:
            job = worker.answers.keep(job, close, record)
            close = job.close
        return NdjsonResponse(job.lines, close, job.deadline_s)

    return endpoint


async def _order(
    worker: Endpoint, pending: RequestBodies, request: Request, parse: Callable[[bytes], OrderT]
) -> OrderT | Response:
    """Return what a worker is told to do, or the answer if it does not take orders now."""
    if not worker.authorized(request):
        return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
    try:
        async with pending.read(request.stream()) as body:
            order = parse(body)
    except bodies.BadRequest as error:
        return _error(400, codes.INVALID_REQUEST, str(error))
    except NoCapacity as error:
        return _error(429, codes.NO_CAPACITY, str(error), retryable=True)
    except ClientDisconnect:
        return _error(400, codes.CANCELLED, "the client went away")
    if worker.draining:
        return _error(503, codes.DRAINING, "this worker is about to end", retryable=True)
    if not worker.serving:
        return _error(503, codes.STARTING, "the model is still loading", retryable=True)
    return order


def _role_endpoint(worker: Endpoint, pending: RequestBodies) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        """Answer 200 if the worker has the role, or 202 if it will have it.

        In case of 202, the client may ask again or watch `info`.
        """
        wanted = await _order(worker, pending, request, bodies.parse_role)
        if isinstance(wanted, Response):
            return wanted
        try:
            done = worker.change_role(wanted.role, wanted.deadline_s)
        except InvalidInput as error:
            return _error(400, codes.INVALID_REQUEST, f"role: {error}")
        except RoleChanging as error:
            return _error(409, codes.ROLE_CHANGING, str(error), retryable=True)
        return JSONResponse(worker.role_status(), 200 if done else 202)

    return endpoint


def _drain_endpoint(worker: Endpoint, pending: RequestBodies) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        """Answer 200 if the worker has no requests, or 202 while some run."""
        asked = await _order(worker, pending, request, bodies.parse_drain)
        if isinstance(asked, Response):
            return asked
        empty = worker.drain(asked.lease_s)
        return JSONResponse(worker.role_status(), 200 if empty else 202)

    return endpoint


def _room_endpoint(worker: Endpoint, pending: RequestBodies) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        if not worker.serving:
            return _error(503, codes.STARTING, "the model is still loading", retryable=True)
        try:
            async with pending.read(request.stream()) as body:
                room = bodies.parse_room(body)
        except bodies.BadRequest as error:
            return _error(400, codes.INVALID_REQUEST, str(error))
        except NoCapacity as error:
            return _error(429, codes.NO_CAPACITY, str(error), retryable=True)
        except ClientDisconnect:
            return _error(400, codes.CANCELLED, "the client went away")
        worker.limit_prefill(room.to_room())
        return Response(status_code=204)

    return endpoint


def create_app(worker: Endpoint, more: Sequence[Route] = ()) -> Starlette:
    """Return the worker's ASGI application, which serves `more` beside the calls of all workers."""
    pending = RequestBodies(body_errors.LIMITS, body_errors.error_of)

    async def healthz(request: Request) -> Response:
        if worker.failed:
            return PlainTextResponse(f"failed: {worker.failed}\n", 503)
        if worker.problem:
            return PlainTextResponse(f"{worker.problem}\n", 503)
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if worker.problem:
            return PlainTextResponse(f"{worker.problem}\n", 503)
        progress = f": {worker.progress}" if worker.state == STARTING and worker.progress else ""
        return PlainTextResponse(f"{READY if worker.ready else worker.state}{progress}\n", 200 if worker.ready else 503)

    async def metrics(request: Request) -> Response:
        body, content_type = worker.metrics_page(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    async def info(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        if (asked := request.headers.get(ROUTER_HEADER)) is not None:
            worker.departure.router_asked(time.monotonic(), needs=asked == ROUTER_NEEDS)
        return JSONResponse(worker.info())

    async def tokenizer(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        if not worker.serving:
            return _error(503, codes.STARTING, "the model is still loading", retryable=True)
        return JSONResponse(worker.tokenizer)

    routes = [
        Route(HEALTH_PATH, healthz),
        Route(READY_PATH, readyz),
        Route(METRICS_PATH, metrics),
        Route(INFO_PATH, info),
        Route(TOKENIZER_PATH, tokenizer),
        Route(DECODE_ROOM_PATH, _room_endpoint(worker, pending), methods=["POST"]),
        Route(DRAIN_PATH, _drain_endpoint(worker, pending), methods=["POST"]),
        Route(ROLE_PATH, _role_endpoint(worker, pending), methods=["POST"]),
        Route(DECODE_PATH, _work_endpoint(worker, pending, ("decode", "both"), _start_decode), methods=["POST"]),
        Route(PREFILL_PATH, _work_endpoint(worker, pending, ("prefill", "both"), _start_prefill), methods=["POST"]),
        *stream_routes(worker, pending),
        *more,
    ]
    app = _App(routes=routes)
    # A redirect would lead to the host that the request names, which may be anybody's.
    app.router.redirect_slashes = False
    return app


class _App(Starlette):
    """An application whose streams know the server's own `send`."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SERVER_SEND] = send
        await super().__call__(scope, receive, send)
