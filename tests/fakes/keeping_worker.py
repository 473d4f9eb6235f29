"""A fake worker that keeps streams as real ones do: with their code, on its own socket."""

from __future__ import annotations

import hmac
import time
from collections.abc import AsyncGenerator
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from tests.fakes.token_worker import BEARER, Fault, TokenWorker

from disagg_protocol import body_errors
from disagg_protocol.event_stream import NdjsonResponse
from disagg_protocol.keep_limits import KeepLimits
from disagg_protocol.kept_answers import KeptAnswers
from disagg_protocol.requests import Job
from disagg_protocol.stream_routes import stream_routes
from disagg_protocol.stream_store import StreamKey, StreamRecord
from disagg_wire.request_bodies import RequestBodies


class KeepingWorker(TokenWorker):
    """A fake worker whose streams can be resumed."""

    def __init__(self, name: str, role: str, limits: KeepLimits | None = None, **more: Any) -> None:
        super().__init__(name, role, **more)
        self.answers = KeptAnswers(limits or KeepLimits())
        self.features = [*(self.features or ()), "resume"]
        pending = RequestBodies(body_errors.LIMITS, body_errors.error_of)
        self.more_routes = stream_routes(self, pending)  # type: ignore[arg-type]

    def authorized(self, request: Request) -> bool:
        return hmac.compare_digest(request.headers.get("authorization", ""), BEARER)

    def _stream(self, lines: AsyncGenerator[dict[str, Any]], fault: Fault | None) -> Response:
        resume = self.seen.bodies[-1].get("resume")
        if resume is None:
            return super()._stream(lines, fault)
        body = self.seen.bodies[-1]
        leg = "decode" if "mode" in body else "prefill"
        emitted = body["tokens"][body["prompt_tokens"] :]
        record = StreamRecord(
            StreamKey(resume["name"], resume["run"], body["epoch"], leg), resume["body"], resume["began_ms"],
            body["sampling"]["seed"], body["prompt_tokens"], resume.get("cached_tokens"),
        )  # fmt: skip
        record.tokens.extend(emitted)
        record.first_own = len(emitted)
        self.running += 1
        ended: list[KeepingWorker] = []

        def close() -> None:
            if not ended:
                ended.append(self)
                self.running -= 1

        job = Job(self._made(lines, fault), close, lambda error: None, time.monotonic() + 60)
        kept = self.answers.keep(job, close, record)
        return NdjsonResponse(kept.lines, kept.close, kept.deadline_s)

    async def _made(self, lines: AsyncGenerator[dict[str, Any]], fault: Fault | None) -> AsyncGenerator[dict[str, Any]]:
        tokens = 0
        async for line in lines:
            if fault is not None and tokens >= fault.after_tokens and line["type"] in ("token", "end"):
                yield {"type": "error", "code": fault.code, "message": "as told", "retryable": True}
                return
            tokens += line["type"] == "token"
            yield line

    async def _decode_lines(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        """Add what `accepted` says of the first token, as the bundled worker does."""
        async for line in super()._decode_lines(body):
            if line["type"] == "accepted" and line["path"] == "remote" and not self._first_from_decode:
                tokens = [*body["tokens"]]
                token = self._sample({**body, "sampling": {**body["sampling"], "logprobs": None}}, tokens)["token"]
                line = line | {"first_token": token}
            yield line
