"""The HTTP interface of the router: the OpenAI API, health, metrics and the state for the
operator.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import math
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from disagg_router.admission.asker import Asker
from disagg_router.admission.quotas import LimitReached, Quota
from disagg_router.dispatch.dispatcher import ModelReplaced
from disagg_router.dispatch.rest_of_stream import gone
from disagg_router.errors import ApiError
from disagg_router.openai import body_errors, outcomes, schema
from disagg_router.openai.account import Account
from disagg_router.openai.answer_headers import SHOWN_ID, TRACE_ID
from disagg_router.openai.answers import AnswerFormat, Piece
from disagg_router.openai.api_keys import ApiKeys
from disagg_router.openai.body import loads
from disagg_router.openai.event_ids import Progress
from disagg_router.openai.generation import Generation
from disagg_router.openai.model_names import ModelNames
from disagg_router.openai.openapi import OPENAPI_PATH, document
from disagg_router.openai.planner import Planner
from disagg_router.openai.pumped_response import PumpedResponse, while_connected
from disagg_router.openai.refusals import http_refusal, internal, refusal
from disagg_router.openai.relay import relayed
from disagg_router.openai.resume import Mark, Resumes, asks_again
from disagg_router.openai.streaming import SseResponse, merge, news
from disagg_router.router import Router
from disagg_router.tracing.trace_context import TRACEPARENT
from disagg_wire.protocol import DEMAND_PATH, HEALTH_PATH, METRICS_PATH, READY_PATH, STATE_PATH
from disagg_wire.request_bodies import RequestBodies
from disagg_wire.tenants import scope_of, share_of
from disagg_wire.version import VERSION

log = logging.getLogger(__name__)
# The longest time that a request of the operator is kept waiting for news.
_POLL_S = 60.0


def _seconds(text: str | None) -> float | None:
    """Return a number of seconds from a query, or None for what is none."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if 0 <= value < math.inf else None


def _bearer_of(request: Request) -> str:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


class Api:
    """The endpoints of the router."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._keys = ApiKeys(router.settings)
        self._names = ModelNames(router)
        self._bodies = RequestBodies(body_errors.limits_of(router.settings), body_errors.error_of)
        self._planner = Planner(router.settings.max_attempts, router.settings.max_bodies_bytes)
        self._openapi = document(VERSION, keys=self._keys.required)
        self._bearer = router.settings.bearer().encode()
        self._resumes = Resumes(router)
        self._salt = hmac.digest(self._bearer, b"disagg-tenant-v1", "sha256")

    def _authenticate(self, request: Request) -> Quota:
        """Return what the API key may still do. Raises ApiError."""
        quota = self._keys.quota_of(_bearer_of(request))
        if quota is None:
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")
        return quota

    def _digest(self, *parts: str | None) -> str:
        return hmac.digest(self._salt, json.dumps(parts).encode(), "sha256").hex() if any(parts) else ""

    def _tenant(self, key: str, salt: str | None) -> str:
        """Return the scope within which requests may share cached KV: one API key and one
        `cache_salt`.
        """
        return scope_of(self._digest(key), self._digest(key, salt)) if key or salt else ""

    async def chat(self, request: Request) -> Response:
        return await self._completions(request, schema.ChatRequest, "chat")

    async def completions(self, request: Request) -> Response:
        return await self._completions(request, schema.CompletionRequest, "completions")

    async def _completions(self, request: Request, kind: type[schema.RequestT], endpoint: str) -> Response:
        """Answer a request, and count it by the status of its answer.

        A stream counts when it is over, with the status of the error that it ends with, if any.
        """
        quota: Quota | None = None
        account = Account(self._router, endpoint, request.headers.getlist(TRACEPARENT))
        account.shown_id = request.scope.get(SHOWN_ID, "-")
        with contextlib.ExitStack() as running:
            refused: LimitReached | None = None
            try:
                quota = self._authenticate(request)
                quota.begin(time.monotonic())
                running.callback(quota.end)
                answer = await self._answer(request, kind, quota, account, chat=endpoint == "chat")
            except LimitReached as error:
                answer, refused = refusal(error), error
                self._router.metrics.limited.labels(error.limited).inc()
            except ApiError as error:
                account.refused(error)
                answer = refusal(error)
            except ClientDisconnect:
                answer = Response(status_code=499)
            except Exception:
                log.exception("a request failed")
                answer = refusal(internal())
            if account.record is not None and not account.relayed:
                answer.headers[TRACE_ID] = account.record.trace.trace_id.hex()
            if quota is not None:
                answer.raw_headers += quota.headers(time.monotonic(), refused)
            if isinstance(answer, PumpedResponse):
                answer.finally_call(running.pop_all().close)
        account.answered(answer.status_code)
        return answer

    async def _answer(
        self, request: Request, kind: type[schema.RequestT], quota: Quota, account: Account, *, chat: bool
    ) -> Response:
        arrived_s = time.monotonic()
        announced = request.headers.get("content-length", "")
        async with self._bodies.read(request.stream(), announced) as body:
            upstream = self._router.upstream
            if upstream is not None and not asks_again(request) and upstream.takes(request.headers):
                account.relayed = True
                return await relayed(self._router, upstream, request, body, arrived_s)
            asked, size_bytes = schema.parse(kind, loads(body)), len(body)
            del body
        shown_id, generations, queue_s, held_s = secrets.token_hex(12), account.generations, 0.0, 0.0
        # Who asks for what does not exist keeps no workers from resting.
        self._names.check(asked.model)
        mark = self._resumes.mark(request, asked, quota.key.key)
        tenant = self._tenant(quota.key.key, asked.cache_salt)
        if mark is not None and mark.has is not None:
            return await self._again(request, asked, size_bytes, mark, quota, tenant, account, chat=chat)
        asker = Asker(quota.key.priority, share_of(tenant))
        with self._router.work() as work:
            work.callback(outcomes.followed(self._router, generations))
            work.callback(lambda: account.over(streamed=bool(asked.stream)))
            for _ in range(self._router.settings.max_attempts):
                try:
                    text, model, waited_s = await self._names.find(
                        asked.model, size_bytes, time.monotonic() - held_s, request.receive, asker
                    )
                except ApiError as error:
                    if not generations:
                        outcomes.compare_refused(self._router, error, streamed=bool(asked.stream))
                    raise
                found_s = time.monotonic()
                planned = await self._planner.plan(asked, size_bytes, text, model, quota, tenant, arrived_s)
                if account.record is not None:
                    account.record.planned(found_s, waited_s)
                if not generations:
                    prompts = sum(len(g.state.prompt) for g in planned if not g.shares_prompt)
                    quota.prompt(prompts, time.monotonic())
                for g in planned[len(generations) :]:
                    self._router.metrics.arrived(len(g.state.prompt))
                generations[:] = planned
                if mark is not None:
                    account.progress = mark.begin(shown_id, time.time(), planned)
                account.waited(arrived_s, queue_s + waited_s, held_s + waited_s)
                shape = AnswerFormat(
                    chat=chat,
                    identity=shown_id,
                    created_s=int(time.time()),
                    model=asked.model,
                    fingerprint=model.identity.fingerprint,
                )
                with contextlib.suppress(ModelReplaced):
                    return await self._served(request, asked, shape, account, work)
                queue_s = max(g.trace.queue_s for g in planned)
                held_s = max(g.trace.held_s for g in planned)
            replaced = ApiError(503, "the model was replaced too often; try again", code="starting", retry_after_s=1)
            for g in generations:
                account.failed(g, replaced)
            raise replaced

    async def _again(
        self,
        request: Request,
        asked: schema.ChatRequest | schema.CompletionRequest,
        size_bytes: int,
        mark: Mark,
        quota: Quota,
        tenant: str,
        account: Account,
        *,
        chat: bool,
    ) -> Response:
        """Return the rest of an answer that another router may have begun. Raises ApiError."""
        with self._router.work() as work:
            account.resumes = True
            work.callback(lambda: account.over(streamed=True))
            progress = account.progress = Progress(len(mark.names), mark.has or (0,))
            found = await while_connected(request.receive, self._resumes.find(mark, asked.model))
            account.generations[:] = await self._planner.plan(
                asked, size_bytes, found.text, found.model, quota, tenant, time.monotonic()
            )
            found.resume(self._router, account.generations, asked.n or 1, progress, openings=int(chat))
            try:
                return await self._served(request, asked, found.shape(asked.model, chat=chat), account, work)
            except ModelReplaced:
                raise gone() from None

    async def _served(
        self,
        request: Request,
        asked: schema.ChatRequest | schema.CompletionRequest,
        shape: AnswerFormat,
        account: Account,
        work: contextlib.ExitStack,
    ) -> Response:
        """Return the answer, or its stream once there is a first token.

        Raises ApiError, and ModelReplaced while nothing has gone to the client.
        """
        traced, generations = request.headers.get("x-disagg-trace") == "1", account.generations
        if not asked.stream:
            answer = await while_connected(request.receive, self._whole(shape, account))
            return JSONResponse(answer | ({"disagg": generations[0].trace_json()} if traced else {}))
        usage = traced or (asked.stream_options is not None and asked.stream_options.include_usage)
        events = self._stream(shape, account, usage=usage, traced=traced)
        if account.progress is not None:
            events = news(events, account.progress)
        try:
            # Nothing is promised before there is a token: a failure until then is answered with
            # its own status.
            first = await while_connected(request.receive, anext(events, None))
        except BaseException:
            await events.aclose()
            raise
        account.begins_stream()
        return SseResponse(first, events, work.pop_all().close, account.progress)

    async def _whole(self, shape: AnswerFormat, account: Account) -> dict[str, Any]:
        """Return the whole answer."""
        generations = account.generations
        pieces: list[list[Piece]] = [[] for _ in generations]
        async with contextlib.aclosing(merge([self._pieces(account, g) for g in generations])) as merged:
            async for index, piece in merged:
                pieces[index].append(piece)
        return shape.whole(list(zip(generations, pieces, strict=True)))

    async def _stream(
        self, shape: AnswerFormat, account: Account, *, usage: bool, traced: bool
    ) -> AsyncGenerator[dict[str, Any]]:
        """Yield the chunks of all choices as they come.

        Raises ApiError before the first chunk; after that an error is the last event.
        """
        generations = account.generations
        shown = [0] * len(generations)
        started = False
        try:
            async with contextlib.aclosing(merge([self._pieces(account, g) for g in generations])) as merged:
                async for index, piece in merged:
                    if not started:
                        started = True
                        for g in generations:
                            g.state.shown = True
                        for opening in filter(None, (shape.opening(g.index) for g in generations)):
                            yield opening
                    if piece.text or piece.finish_reason or (piece.tokens and generations[index].shows_each):
                        yield shape.piece(generations[index], piece, shown[index])
                    shown[index] += len(piece.text)
            if usage:
                yield shape.closing(generations, {"disagg": generations[0].trace_json()} if traced else {})
        except ApiError as error:
            if not (started and account.has_news):
                raise
            yield error.body()
        except Exception:
            if not (started and account.has_news):
                raise
            log.exception("a stream failed")
            yield internal().body()

    async def _pieces(self, account: Account, g: Generation) -> AsyncGenerator[Piece]:
        """Yield the pieces of one choice, and count its first token. Raises ApiError."""
        seen = False
        try:
            async with contextlib.aclosing(g.pieces(self._router.dispatcher)) as pieces:
                async for piece in pieces:
                    if piece.tokens and not seen:
                        seen = True
                        account.first(g)
                    yield piece
        except ApiError as error:
            account.failed(g, error)
            raise
        except ModelReplaced:
            raise
        except Exception:
            account.failed(g, internal())
            raise

    async def models(self, request: Request) -> Response:
        """Answer GET /v1/models and /v1/models/{name}."""
        try:
            self._authenticate(request)
        except ApiError as error:
            return refusal(error)
        cards = self._names.cards()
        asked = request.path_params.get("name")
        if asked is None:
            return JSONResponse({"object": "list", "data": list(cards.values())})
        if asked not in cards:
            return refusal(
                ApiError(404, f"the model {asked[:256]!r} does not exist", code="model_not_found", param="model")
            )
        return JSONResponse(cards[asked])

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._openapi)

    async def healthz(self, request: Request) -> Response:
        return PlainTextResponse("ok\n")

    async def readyz(self, request: Request) -> Response:
        """Answer 200 when the list of workers is known, even if requests are answered with a 503 in
        JSON.

        /internal/v1/state tells whether workers are ready.
        """
        ready = self._router.table.synced and not self._router.draining
        return PlainTextResponse("ready\n" if ready else "not ready\n", 200 if ready else 503)

    async def metrics(self, request: Request) -> Response:
        body, content_type = self._router.metrics.page(request.headers.get("accept", ""))
        return Response(body, headers={"content-type": content_type})

    def _refused(self, request: Request) -> Response | None:
        """Return the answer to a call of the operator's that does not show the cluster key."""
        if hmac.compare_digest(_bearer_of(request).encode(), self._bearer):
            return None
        return refusal(ApiError(401, "the bearer token is missing or wrong", code="unauthorized"))

    async def state(self, request: Request) -> Response:
        return self._refused(request) or JSONResponse(self._router.state())

    async def demand(self, request: Request) -> Response:
        """Answer as soon as a request asks for workers that do not exist, or after `wait_s`.

        `cold_start_s` is how long they take to come, as far as the operator knows.
        """
        if (refused := self._refused(request)) is not None:
            return refused
        asked = request.query_params
        wait_s, cold_start_s = (_seconds(asked.get(name)) for name in ("wait_s", "cold_start_s"))
        polling = self._router.demand(asked.get("cursor", "")[:64], min(wait_s or 0.0, _POLL_S), cold_start_s)
        try:
            return JSONResponse(await while_connected(request.receive, polling))
        except ClientDisconnect:
            return Response(status_code=499)


def create_app(router: Router) -> Starlette:
    """Return the router's ASGI application."""
    api = Api(router)
    routes = [
        Route("/v1/chat/completions", api.chat, methods=["POST"]),
        Route("/v1/completions", api.completions, methods=["POST"]),
        Route("/v1/models", api.models),
        Route("/v1/models/{name:path}", api.models),
        Route(OPENAPI_PATH, api.openapi),
        Route(HEALTH_PATH, api.healthz),
        Route(READY_PATH, api.readyz),
        Route(METRICS_PATH, api.metrics),
        Route(STATE_PATH, api.state),
        Route(DEMAND_PATH, api.demand),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: http_refusal, Exception: http_refusal})
    # A redirect would lead to the host that the request names, which may be anybody's.
    app.router.redirect_slashes = False
    return app
