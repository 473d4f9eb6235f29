"""The worker's HTTP door (docs/protocol.md): health, metrics, identity, and the two calls that do work."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from disagg_worker import requests, work
from disagg_worker.engine.api import InvalidInput, NoCapacity
from disagg_worker.metrics import Metrics
from disagg_worker.settings import Settings
from disagg_worker.streams import NdjsonResponse
from disagg_worker.transfer.ticket import TicketError, http_bearer, token_hash, verify

if TYPE_CHECKING:
    from disagg_worker.model.checkpoint import LoadProgress

log = logging.getLogger(__name__)
MAX_BODY_BYTES = 16 << 20
_BODY_TIMEOUT_S = 30.0
_DEAD = "the engine loop is stuck or dead\n"
PROTOCOL = 1


class Worker:
    """The process's state: `starting` until a node is set, then `ready`, at last `draining`."""

    def __init__(self, settings: Settings, key: bytes, incarnation: str) -> None:
        self.settings = settings
        self.incarnation = incarnation
        self.node: work.Node | None = None
        self.tokenizer: dict[str, Any] = {}
        self.failed: str = ""
        self.loading: LoadProgress | None = None
        self.draining = False
        self.active = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.metrics = Metrics(lambda: self.node.engine.load() if self.node else None)
        self._bearer = b"Bearer " + http_bearer(key).encode()

    @property
    def state(self) -> str:
        if self.draining:
            return "draining"
        return "ready" if self.node else "starting"

    @property
    def engine_alive(self) -> bool:
        """False once there was an engine and its loop is stuck or has ended."""
        return self.node is None or self.node.engine.alive()

    @property
    def full(self) -> bool:
        """More requests than can run and wait: each costs a task, a connection and perhaps a thread, so their number has a bound."""
        return self.active >= self.settings.max_running + self.settings.max_waiting

    def on_progress(self, progress: LoadProgress) -> None:
        """How far the weights are; any thread."""
        self.loading = progress

    def authorized(self, request: Request) -> bool:
        given = request.headers.get("authorization", "").encode()
        return hmac.compare_digest(given, self._bearer)

    def enter(self) -> None:
        self.active += 1
        self.idle.clear()

    def leave(self) -> None:
        self.active -= 1
        if self.active == 0:
            self.idle.set()

    def info(self) -> dict[str, Any]:
        s = self.settings
        answer: dict[str, Any] = {
            "protocol": PROTOCOL,
            "incarnation": self.incarnation,
            "pod": s.pod_name,
            "role": s.role,
            "state": self.state,
            "revision": s.revision,
            "limits": {"max_running": s.max_running, "max_waiting": s.max_waiting},
        }
        if self.node is None:
            if self.loading is not None:
                answer["loading"] = {"read_bytes": self.loading.read_bytes, "total_bytes": self.loading.total_bytes}
            return answer
        engine, load = self.node.engine, self.node.engine.load()
        model = engine.model
        answer["model"] = {
            "name": model.name,
            "digest": model.digest,
            "vocab_size": model.vocab_size,
            "max_model_len": model.max_model_len,
            "eos_token_ids": list(model.eos_token_ids),
            "bos_token_id": model.bos_token_id,
        }
        answer["kv"] = {
            "compat": self.node.compat,
            "host": self.node.listener.host,
            "port": self.node.listener.port,
            "interface": self.node.interface,
            "transport": "tcp",
            "block_size_tokens": engine.layout.block_size_tokens,
            "bytes_per_token": engine.layout.bytes_per_token,
            "blocks_total": load.blocks_total,
            "blocks_free": load.blocks_free,
        }
        answer["load"] = {
            "waiting_requests": load.waiting_requests,
            "waiting_tokens": load.waiting_tokens,
            "running_requests": load.running_requests,
        }
        return answer


def _error(status: int, code: str, message: str, *, retryable: bool = False) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message, "retryable": retryable}}, status)


async def _body(request: Request) -> bytes:
    """The body, never more than MAX_BODY_BYTES of it, nor later than _BODY_TIMEOUT_S. Raises BadRequest."""
    parts, size = [], 0
    try:
        async with asyncio.timeout(_BODY_TIMEOUT_S):
            async for part in request.stream():
                size += len(part)
                if size > MAX_BODY_BYTES:
                    raise requests.BadRequest(f"body: over {MAX_BODY_BYTES} bytes")
                parts.append(part)
    except TimeoutError:
        raise requests.BadRequest(f"body: did not come within {_BODY_TIMEOUT_S:g} s") from None
    return b"".join(parts)


def _check_length(node: work.Node, tokens: int) -> None:
    limit = node.engine.model.max_model_len
    if tokens >= limit:
        raise requests.PromptTooLong(f"tokens: {tokens} and at least one more do not fit max_model_len {limit}")


async def _prepare(node: work.Node, request: requests.DecodeRequest | requests.PrefillRequest) -> None:
    """What can be refused or takes long, before anything is held. Compiling a grammar must not hold up the other streams."""
    _check_length(node, len(request.tokens))
    if request.sampling.structured is not None:
        await asyncio.to_thread(node.engine.prepare, request.sampling.to_params())


async def _start_decode(node: work.Node, body: bytes) -> work.Job:
    request = requests.parse(requests.DecodeRequest, body)
    await _prepare(node, request)
    return (work.decode_remote if request.mode == "remote" else work.decode_local)(node, request)


async def _start_prefill(node: work.Node, body: bytes) -> work.Job:
    request = requests.parse(requests.PrefillRequest, body)
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
    return work.prefill(node, request, ticket)


Start = Callable[[work.Node, bytes], Awaitable[work.Job]]


def _work_endpoint(worker: Worker, roles: tuple[str, ...], start: Start) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, "unauthorized", "the bearer token is missing or wrong")
        if worker.draining:
            return _error(503, "draining", "this worker takes no new requests", retryable=True)
        if worker.node is None:
            return _error(503, "starting", "the model is still loading", retryable=True)
        if worker.settings.role not in roles:
            return _error(400, "invalid_request", f"this worker's role is {worker.settings.role}")
        if worker.full:
            return _error(429, "no_capacity", f"{worker.active} requests are here already", retryable=True)
        worker.enter()
        job = None
        try:
            job = await start(worker.node, await _body(request))
        except requests.PromptTooLong as error:
            return _error(413, "prompt_too_long", str(error))
        except (requests.BadRequest, TicketError, InvalidInput) as error:
            return _error(400, "invalid_request", str(error))
        except NoCapacity as error:
            worker.metrics.reservations_refused.inc()
            return _error(429, "no_capacity", str(error), retryable=True)
        except ClientDisconnect:
            return _error(400, "cancelled", "the client went away")
        except Exception:
            log.exception("a request failed")
            return _error(500, "internal", "internal error; see the worker's log", retryable=True)
        finally:
            if job is None:
                worker.leave()
        return NdjsonResponse(job.lines, _closing(worker, job), job.deadline_s)

    return endpoint


def _closing(worker: Worker, job: work.Job) -> Callable[[], None]:
    """Free what the job holds; the worker is not idle before that."""

    def close() -> None:
        try:
            job.close()
        finally:
            worker.leave()

    return close


def create_app(worker: Worker) -> Starlette:
    """The worker's ASGI application."""

    async def healthz(request: Request) -> Response:
        if worker.failed:
            return PlainTextResponse(f"failed: {worker.failed}\n", 503)
        if not worker.engine_alive:
            return PlainTextResponse(_DEAD, 503)
        return PlainTextResponse("ok\n")

    async def readyz(request: Request) -> Response:
        if not worker.engine_alive:
            return PlainTextResponse(_DEAD, 503)
        progress = f": {worker.loading}" if worker.state == "starting" and worker.loading else ""
        return PlainTextResponse(f"{worker.state}{progress}\n", 200 if worker.state == "ready" else 503)

    async def metrics(request: Request) -> Response:
        return Response(worker.metrics.render(), media_type="text/plain; version=0.0.4")

    async def info(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, "unauthorized", "the bearer token is missing or wrong")
        return JSONResponse(worker.info())

    async def tokenizer(request: Request) -> Response:
        if not worker.authorized(request):
            return _error(401, "unauthorized", "the bearer token is missing or wrong")
        if worker.node is None:
            return _error(503, "starting", "the model is still loading", retryable=True)
        return JSONResponse(worker.tokenizer)

    routes = [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/internal/v1/info", info),
        Route("/internal/v1/tokenizer", tokenizer),
        Route("/internal/v1/decode", _work_endpoint(worker, ("decode", "both"), _start_decode), methods=["POST"]),
        Route("/internal/v1/prefill", _work_endpoint(worker, ("prefill", "both"), _start_prefill), methods=["POST"]),
    ]
    return Starlette(routes=routes)
