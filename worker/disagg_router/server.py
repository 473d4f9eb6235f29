"""The router's HTTP door: the OpenAI API, health, metrics and the state that the operator reads."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from disagg_router import schema
from disagg_router.answers import AnswerFormat
from disagg_router.errors import ApiError
from disagg_router.generation import Generation, Piece, plan
from disagg_router.router import Router
from disagg_router.streaming import SseResponse, merge
from disagg_router.text import Text
from disagg_router.workers import Worker

log = logging.getLogger(__name__)


def _error(error: ApiError) -> Response:
    headers = {"retry-after": str(error.retry_after_s)} if error.retry_after_s is not None else {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


def _bearer_of(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class Api:
    """The endpoints."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._keys = [k.encode() for k in router.settings.api_keys()]
        self._bearer = router.settings.bearer().encode()

    def _authenticate(self, request: Request) -> None:
        if not self._keys:
            return
        given = _bearer_of(request).encode()
        # Every key is compared, so the time says nothing about which one was near.
        if sum(hmac.compare_digest(given, key) for key in self._keys) == 0:
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    async def _json(self, request: Request) -> Any:
        limit = self._router.settings.max_body_bytes
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise ApiError(413, f"the body is over {limit} bytes", code="body_too_large")
            parts.append(part)
        try:
            return json.loads(b"".join(parts))
        except (ValueError, RecursionError):
            raise ApiError(400, "the body is not valid JSON", code="invalid_json") from None

    def _model(self, name: str) -> tuple[Text, Worker]:
        if name != self._router.settings.model_name:
            raise ApiError(404, f"the model {name!r} does not exist; this server has {self._router.settings.model_name!r}",
                           code="model_not_found", param="model")  # fmt: skip
        text, worker = self._router.table.text, self._router.table.model_worker()
        if text is None or worker is None:
            raise ApiError(503, "no worker is ready yet; try again later", code="starting", retry_after_s=5)
        return text, worker

    async def chat(self, request: Request) -> Response:
        return await self._completions(request, schema.ChatRequest, "chat")

    async def completions(self, request: Request) -> Response:
        return await self._completions(request, schema.CompletionRequest, "completions")

    async def _completions(
        self, request: Request, kind: type[schema.RequestT], endpoint: str
    ) -> Response:
        code = 500
        try:
            self._authenticate(request)
            if self._router.draining:
                raise ApiError(503, "this router is shutting down", code="draining", retry_after_s=1)
            asked = schema.parse(kind, await self._json(request))
            text, worker = self._model(asked.model)
            generations = plan(asked, text, worker, self._router.settings.max_attempts)
            shape = AnswerFormat(chat=endpoint == "chat", identity=secrets.token_hex(12), created_s=int(time.time()), model=asked.model)
            traced = request.headers.get("x-disagg-trace") == "1"
            self._router.enter()
            if asked.stream:
                usage = traced or (asked.stream_options is not None and asked.stream_options.include_usage)
                code = 200
                return SseResponse(self._stream(shape, generations, usage=usage, traced=traced))
            try:
                answer = await self._whole(request, shape, generations)
            finally:
                self._finished(generations)
            code = 200
            return JSONResponse(answer | ({"disagg": generations[0].trace_json()} if traced else {}))
        except ApiError as error:
            code = error.status
            return _error(error)
        except ClientDisconnect:
            code = 499
            return Response(status_code=499)
        finally:
            self._router.metrics.requests.labels(endpoint, str(code)).inc()

    async def _whole(self, request: Request, shape: AnswerFormat, generations: list[Generation]) -> dict[str, Any]:
        """The whole answer; given up when the client goes away."""

        async def one(generation: Generation) -> list[Piece]:
            return [piece async for piece in generation.pieces(self._router.dispatcher)]

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        work: asyncio.Future[list[list[Piece]]] = asyncio.gather(*(one(g) for g in generations))
        left: asyncio.Future[None] = asyncio.create_task(gone())
        try:
            both: set[asyncio.Future[Any]] = {work, left}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                raise ClientDisconnect
            return shape.whole(list(zip(generations, work.result(), strict=True)))
        finally:
            left.cancel()
            work.cancel()
            await asyncio.gather(work, left, return_exceptions=True)

    async def _stream(
        self, shape: AnswerFormat, generations: list[Generation], *, usage: bool, traced: bool
    ) -> AsyncIterator[dict[str, Any]]:
        """Chunks of all choices as they come; an error after the start is the last event."""
        shown = [0] * len(generations)
        pieces = merge([g.pieces(self._router.dispatcher) for g in generations])
        try:
            for generation in generations:
                if (opening := shape.opening(generation.index)) is not None:
                    yield opening
            async for index, piece in pieces:
                if piece.text or (piece.tokens and piece.tokens[0].logprob is not None) or piece.finish_reason:
                    yield shape.piece(generations[index], piece, shown[index])
                shown[index] += len(piece.text)
            if usage:
                yield shape.closing(generations, {"disagg": generations[0].trace_json()} if traced else {})
        except ApiError as error:
            yield error.body()
        finally:
            await pieces.aclose()  # type: ignore[attr-defined]
            self._finished(generations)

    def _finished(self, generations: Sequence[Generation]) -> None:
        self._router.leave()
        metrics = self._router.metrics
        for g in generations:
            metrics.prompt_tokens.inc(len(g.state.prompt))
            metrics.generated_tokens.inc(len(g.state.emitted))
            if not g.first_s:
                continue
            metrics.ttft.observe(g.ttft_s)
            metrics.duration.observe(g.last_s - g.started_s)
            if g.tpot_s is not None:
                metrics.tpot.observe(g.tpot_s)
            metrics.paths.labels(g.trace.path or "unfinished").inc()
            prefill, decode = (w.pod if w else "-" for w in (g.trace.prefill, g.trace.decode))
            log.info(
                "request=%s prefill=%s decode=%s path=%s prompt_tokens=%d tokens=%d ttft_ms=%.1f kv_bytes=%d transfer_ms=%.1f attempts=%d",
                g.state.request_id, prefill, decode, g.trace.path, len(g.state.prompt), len(g.state.emitted), 1e3 * g.ttft_s,
                g.trace.kv_bytes, 1e3 * g.trace.transfer_s, g.trace.attempts,
            )  # fmt: skip

    async def models(self, request: Request) -> Response:
        """GET /v1/models and /v1/models/{name}."""
        try:
            self._authenticate(request)
        except ApiError as error:
            return _error(error)
        name = self._router.settings.model_name
        card = {"id": name, "object": "model", "created": self._router.created_s, "owned_by": "disagg"}
        asked = request.path_params.get("name")
        if asked is None:
            return JSONResponse({"object": "list", "data": [card]})
        if asked != name:
            return _error(ApiError(404, f"the model {asked[:256]!r} does not exist", code="model_not_found", param="model"))
        return JSONResponse(card)

    async def healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Ready to answer, be it with 503 JSON: the list of workers is known. Whether workers are ready is told by /internal/v1/state."""
        ready = self._router.table.synced and not self._router.draining
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        return Response(self._router.metrics.render(), media_type="text/plain; version=0.0.4")

    async def state(self, request: Request) -> Response:
        if not hmac.compare_digest(_bearer_of(request).encode(), self._bearer):
            return _error(ApiError(401, "the bearer token is missing or wrong", code="unauthorized"))
        return JSONResponse(self._router.state())


async def _http_error(request: Request, error: Exception) -> Response:
    """404 and 405 in OpenAI's form, too."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    said, code = {404: ("no such endpoint", "not_found"), 405: ("not allowed", "method_not_allowed")}.get(status, ("failed", "internal"))
    return _error(ApiError(status, f"{request.method} {request.url.path[:256]}: {said}", code=code))


def create_app(router: Router) -> Starlette:
    """The router's ASGI application."""
    api = Api(router)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.models),
        Route("/healthz", api.healthz),
        Route("/readyz", api.readyz),
        Route("/metrics", api.metrics),
        Route("/internal/v1/state", api.state),
    ]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error, Exception: _http_error})
