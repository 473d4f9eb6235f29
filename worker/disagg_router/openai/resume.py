"""Streams that go on after their router or their connection is gone.

A client that gave its request a name in `x-request-id` sends the same request again, with what it
has got in `Last-Event-ID`, to any router. The workers have kept the tokens, under names that only
routers can know.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import httpx
from starlette.requests import Request

from disagg_router.dispatch.rest_of_stream import Resumed, gone
from disagg_router.errors import ApiError
from disagg_router.openai.answer_headers import SHOWN_ID
from disagg_router.openai.answers import AnswerFormat
from disagg_router.openai.event_ids import LAST_EVENT_ID, Progress, parse_id
from disagg_router.openai.generation import Generation
from disagg_router.openai.schema import ChatRequest, CompletionRequest
from disagg_router.router import Router
from disagg_router.text.tokenizer import Text
from disagg_router.workers.catalogue import Model
from disagg_router.workers.kept_streams import KeptChoice, KeptStream, choices_of, last_run
from disagg_router.workers.worker_info import Worker
from disagg_wire import series
from disagg_wire.protocol import FEATURE_RESUME

_PURPOSE = b"disagg-resume-v1"
# How many workers are asked at a time.
_MOST_ASKED = 64


def asks_again(request: Request) -> bool:
    """Return whether a request is for the rest of an answer."""
    return LAST_EVENT_ID in request.headers


@dataclass(frozen=True, slots=True)
class Mark:
    """What a stream that can be resumed is known by."""

    names: tuple[str, ...]
    """The names of its choices on workers."""
    body: str
    """What two requests have in common that ask for the same."""
    has: tuple[int, ...] | None
    """The last id that the client has got; None if it begins."""

    def begin(self, run: str, began_s: float, generations: Sequence[Generation]) -> Progress:
        """Have workers keep the choices, and return what the client has of them."""
        shared = {"body": self.body, "run": run, "began_ms": int(1000 * began_s)}
        for name, g in zip(self.names, generations, strict=True):
            g.state.resume = {"name": name, **shared}
        return Progress(len(generations))


@dataclass(frozen=True, slots=True)
class Found:
    """The answer that a client wants the rest of."""

    mark: Mark
    run: str
    began_ms: int
    text: Text
    model: Model
    choices: list[KeptChoice | None]

    def shape(self, name: str, *, chat: bool) -> AnswerFormat:
        """Return the shapes of the answer, which are those of its beginning."""
        return AnswerFormat(
            chat=chat, identity=self.run, created_s=self.began_ms // 1000, model=name,
            fingerprint=self.model.identity.fingerprint,
        )  # fmt: skip

    def resume(
        self, router: Router, planned: Sequence[Generation], per_prompt: int, progress: Progress, openings: int
    ) -> None:
        """Have the planned choices go on where the answer is; each has `openings` events before
        its first token. Raises ApiError.
        """
        known = next((i, c.stream) for i, c in enumerate(self.choices) if c is not None)
        if len(planned) != len(self.choices) or len(planned[known[0]].state.prompt) != known[1].prompt_tokens:
            raise gone()
        first_seed = known[1].seed - known[0] % per_prompt
        self.mark.begin(self.run, self.began_ms / 1000, planned)
        for g, kept in zip(planned, self.choices, strict=True):
            g.state.sampling = {**g.state.sampling, "seed": (first_seed + g.index % per_prompt) % (1 << 64)}
            g.state.shown = True
            g.free_tokens = progress.has(g.index)
            g.source = Resumed(
                router.client, router.table, router.dispatcher, kept, router.settings.stall_timeout_s,
                partial(g.has_shown, progress.has(g.index) - openings),
            )  # fmt: skip


class Resumes:
    """What a router does for streams that can be resumed. It keeps nothing."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._key = hmac.digest(router.settings.bearer().encode(), _PURPOSE, "sha256")

    def _name(self, *parts: str | int) -> str:
        return hmac.digest(self._key, json.dumps(parts).encode(), "sha256").hex()

    def mark(self, request: Request, asked: ChatRequest | CompletionRequest, key: str) -> Mark | None:
        """Return what a stream will be or is known by; None if it cannot be resumed, because its
        client gave it no name. Raises ApiError.
        """
        shown, given = request.scope.get(SHOWN_ID), request.headers.get("x-request-id")
        if not asked.stream or given is None or given != shown:
            if asks_again(request):
                message = f"{LAST_EVENT_ID}: needs `stream`, and the x-request-id with which the answer was begun"
                raise ApiError(400, message, code="invalid_value", param=LAST_EVENT_ID)
            return None
        prompts = 1 if isinstance(asked, ChatRequest) else len(asked.prompts())
        content = hashlib.sha256(asked.model_dump_json().encode()).hexdigest()
        return Mark(
            tuple(self._name("name", key, shown, i) for i in range(prompts * (asked.n or 1))),
            self._name("body", request.url.path, content),
            parse_id(request.headers[LAST_EVENT_ID]) if asks_again(request) else None,
        )

    async def find(self, mark: Mark, name: str) -> Found:
        """Return the answer that is to go on. Raises ApiError."""
        try:
            found = await self._find(mark, name)
        except ApiError as error:
            self._router.metrics.resumed.labels(error.code or "").inc()
            raise
        self._router.metrics.resumed.labels(series.RESUMED).inc()
        return found

    async def _find(self, mark: Mark, name: str) -> Found:
        table = self._router.table
        workers = [w for w in table.workers() if FEATURE_RESUME in w.features]
        found, silent = await self._ask(workers, mark.names)
        parts = last_run(found, mark.body)
        if not parts:
            if found:
                message = "this x-request-id is that of another request"
                raise ApiError(409, message, code="request_id_reused", param="x-request-id")
            if silent or not table.synced:
                message = "a worker does not say what it keeps; try again"
                raise ApiError(503, message, code="overloaded", retry_after_s=1)
            raise gone()
        offers = [o for o in table.catalogue.offers.get(name, ()) if parts[0].worker.offers(o.model.identity)]
        if not offers:
            raise gone()
        model = offers[0].model
        one = parts[0]
        return Found(
            mark, one.run, one.began_ms, table.text(model.identity), model,
            choices_of(parts, mark.names),
        )  # fmt: skip

    async def _ask(self, workers: Sequence[Worker], names: Sequence[str]) -> tuple[list[KeptStream], int]:
        """Return what workers keep under the names, and how many of them did not say."""
        few, found, silent = asyncio.Semaphore(_MOST_ASKED), list[KeptStream](), 0

        async def ask(worker: Worker) -> None:
            nonlocal silent
            try:
                async with few:
                    found.extend(await self._router.client.find_streams(worker, names))
            except (httpx.HTTPError, ValueError):
                silent += 1

        await asyncio.gather(*(ask(worker) for worker in workers))
        return found, silent
