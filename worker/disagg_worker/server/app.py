"""The worker's HTTP endpoints (docs/protocol.md): health, metrics, identity, change of role, and
the two calls that do work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from disagg_wire import codes
from disagg_wire.protocol import (
    DECODE_PATH,
    DECODE_ROOM_PATH,
    DRAINING,
    HEALTH_PATH,
    INFO_PATH,
    METRICS_PATH,
    PREFILL_PATH,
    READY,
    READY_PATH,
    ROLE_PATH,
    STARTING,
    TOKENIZER_PATH,
)
from disagg_worker.server import bodies, jobs
from disagg_worker.server.event_stream import NdjsonResponse
from disagg_worker.server.worker import RoleChanging, Worker
from disagg_worker.transfer.ticket import TicketError, token_hash, verify
from disagg_worker.values.errors import InvalidInput, NoCapacity

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 16 << 20
_BODY_TIMEOUT_S = 30.0
_DEAD = "the engine loop is stuck or dead\n"


def _error(status: int, code: str, message: str, *, retryable: bool = False) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "retryable": retryable}}, status)


async def _body(request: Request) -> bytes:
    """Read the body of a request.

    Raises BadRequest if it is larger than MAX_BODY_BYTES or takes longer than _BODY_TIMEOUT_S.
    """
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise bodies.BadRequest(f"body: over {MAX_BODY_BYTES} bytes")
                parts.append(part)
    except TimeoutError:
        raise bodies.BadRequest(f"body: did not come within {_BODY_TIMEOUT_S:g} s") from None
    return b"".join(parts)


def _check_length(node: jobs.Node, tokens: int) -> None:
    limit = node.engine.model.max_model_len
    if tokens >= limit:
        raise bodies.PromptTooLong(f"tokens: {tokens} and at least one more do not fit max_model_len {limit}")


async def _prepare(node: jobs.Node, request: bodies.DecodeRequest | bodies.PrefillRequest) -> None:
    """Check the length of a request and compile its grammar, before anything is held for it.

    The grammar is compiled in a thread, so that it does not delay the other streams.
    """
    _check_length(node, len(request.tokens))
    if request.sampling.structured is not None:
        await asyncio.to_thread(node.engine.prepare, request.sampling.to_params())


async def _start_decode(node: jobs.Node, body: bytes) -> jobs.Job:
    request = bodies.parse(bodies.DecodeRequest, body)
    due_s = request.due_s(time.monotonic())
    await _prepare(node, request)
    return jobs.decode_remote(node, request) if request.mode == "remote" else jobs.decode_local(node, request, due_s)


async def _start_prefill(node: jobs.Node, body: bytes) -> jobs.Job:
    request = bodies.parse(bodies.PrefillRequest, body)
    due_s = request.due_s(time.monotonic())
    await _prepare(node, request)
    ticket = None
    if request.ticket is not None:
        ticket = verify(node.key, request.ticket)
        if ticket.compat != node.compat:
            raise TicketError("ticket.compat: the decode worker's KV layout or model is another one")
        if (ticket.request_id, ticket.epoch) != (request.request_id, request.epoch):
            raise TicketError("ticket: is for another request")
        if (ticket.tokens, ticket.token_hash) != (len(request.tokens), token_hash(request.tokens)):
            raise TicketError("ticket.token_hash: is for other tokens")
    return jobs.prefill(node, request, ticket, due_s)


Start = Callable[[jobs.Node, bytes], Awaitable[jobs.Job]]


def _work_endpoint(worker: Worker, roles: tuple[str, ...], start: Start) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        if worker.state == DRAINING:
            return _error(503, codes.DRAINING, "this worker takes no new requests", retryable=True)
        if worker.node is None:
            return _error(503, codes.STARTING, "the model is still loading", retryable=True)
        if worker.role not in roles:
            # The router has not heard of a change of role yet; another worker will take the
            # request.
            return _error(503, codes.OTHER_ROLE, f"this worker's role is {worker.role}", retryable=True)
        if worker.full:
            return _error(429, codes.NO_CAPACITY, f"{worker.active} requests are here already", retryable=True)
        worker.enter()
        job = None
        try:
            job = await start(worker.node, await _body(request))
        except bodies.PromptTooLong as error:
            return _error(413, codes.PROMPT_TOO_LONG, str(error))
        except TicketError as error:
            return _error(400, codes.TICKET_REFUSED, str(error))
        except (bodies.BadRequest, InvalidInput) as error:
            return _error(400, codes.INVALID_REQUEST, str(error))
        except NoCapacity as error:
            worker.metrics.reservations_refused.inc()
            return _error(429, codes.NO_CAPACITY, str(error), retryable=True)
        except ClientDisconnect:
            return _error(400, codes.CANCELLED, "the client went away")
        except Exception:
            log.exception("a request failed")
            return _error(500, codes.INTERNAL, "internal error; see the worker's log", retryable=True)
        finally:
            if job is None:
                worker.leave()
        return NdjsonResponse(job.lines, worker.keep(job), job.deadline_s)

    return endpoint


def _role_endpoint(worker: Worker) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        """Answer 200 if the worker has the role, or 202 if it will have it.

        In case of 202, the client may ask again or watch `info`.
        """
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        try:
            wanted = bodies.parse_role(await _body(request))
        except bodies.BadRequest as error:
            return _error(400, codes.INVALID_REQUEST, str(error))
        except ClientDisconnect:
            return _error(400, codes.CANCELLED, "the client went away")
        if worker.draining:
            return _error(503, codes.DRAINING, "this worker is about to end", retryable=True)
        if worker.node is None:
            return _error(503, codes.STARTING, "the model is still loading", retryable=True)
        try:
            done = worker.change_role(wanted.role, wanted.deadline_s)
        except RoleChanging as error:
            return _error(409, codes.ROLE_CHANGING, str(error), retryable=True)
        return JSONResponse(worker.role_status(), 200 if done else 202)

    return endpoint


def _room_endpoint(worker: Worker) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        if worker.node is None:
            return _error(503, codes.STARTING, "the model is still loading", retryable=True)
        try:
            room = bodies.parse_room(await _body(request))
        except bodies.BadRequest as error:
            return _error(400, codes.INVALID_REQUEST, str(error))
        except ClientDisconnect:
            return _error(400, codes.CANCELLED, "the client went away")
        worker.node.engine.limit_prefill(room.to_room())
        return Response(status_code=204)

    return endpoint


def create_app(worker: Worker) -> Starlette:
    """Return the worker's ASGI application."""

    async def healthz(request: Request) -> Response:
        if worker.failed:
            return PlainTextResponse(f"failed: {worker.failed}\n", 503)
        if not worker.engine_alive:
            return PlainTextResponse(_DEAD, 503)
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if not worker.engine_alive:
            return PlainTextResponse(_DEAD, 503)
        progress = f": {worker.loading}" if worker.state == STARTING and worker.loading else ""
        return PlainTextResponse(f"{worker.state}{progress}\n", 200 if worker.state == READY else 503)

    async def metrics(request: Request) -> Response:
        return Response(worker.metrics.render(), media_type="text/plain; version=0.0.4")

    async def info(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        return JSONResponse(worker.info())

    async def tokenizer(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, codes.UNAUTHORIZED, "the bearer token is missing or wrong")
        if worker.node is None:
            return _error(503, codes.STARTING, "the model is still loading", retryable=True)
        return JSONResponse(worker.tokenizer)

    routes = [
        Route(HEALTH_PATH, healthz),
        Route(READY_PATH, readyz),
        Route(METRICS_PATH, metrics),
        Route(INFO_PATH, info),
        Route(TOKENIZER_PATH, tokenizer),
        Route(DECODE_ROOM_PATH, _room_endpoint(worker), methods=["POST"]),
        Route(ROLE_PATH, _role_endpoint(worker), methods=["POST"]),
        Route(DECODE_PATH, _work_endpoint(worker, ("decode", "both"), _start_decode), methods=["POST"]),
        Route(PREFILL_PATH, _work_endpoint(worker, ("prefill", "both"), _start_prefill), methods=["POST"]),
    ]
    return Starlette(routes=routes)
