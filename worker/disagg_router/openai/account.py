"""The account of one API request: what became of it and of its choices, in metrics and the log."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from disagg_router.errors import ApiError
from disagg_router.openai import outcomes, request_spans
from disagg_router.openai.event_ids import Progress
from disagg_router.openai.generation import Generation
from disagg_router.openai.request_spans import RequestRecord
from disagg_router.router import Router
from disagg_wire import series

log = logging.getLogger(__name__)
# What a client is told that has left.
_LEFT = 499


def outcome_of(error: ApiError, *, has_first: bool) -> str:
    """Return what becomes of a generation that the service fails."""
    if has_first:
        return series.FAILED_AFTER_FIRST
    return {429: series.SHED, 504: series.TIMED_OUT}.get(error.status, series.FAILED_BEFORE_FIRST)


class Account:
    """The account of a request, counted once, when it is over.

    `generations` are its choices once they are planned.
    """

    def __init__(self, router: Router, endpoint: str, traceparents: Sequence[str] = ()) -> None:
        self._router = router
        self._endpoint = endpoint
        self.record: RequestRecord | None = None
        """What is noted for its trace, if requests are traced."""
        if router.tracer is not None:
            self.record = RequestRecord(router.tracer.begin(traceparents), endpoint)
        self._code: str | None = None
        self.generations: list[Generation] = []
        self.shown_id = "-"
        """The ID in `x-request-id` of the answer."""
        self.progress: Progress | None = None
        """What the client has of a stream that it may resume."""
        self.resumes = False
        """Whether an answer goes on that was counted by the router that began it."""
        self.relayed = False
        """Whether another service answers."""
        self.streams = False
        """Whether an answer has begun that ends later."""

    @property
    def has_news(self) -> bool:
        """Whether something of the answer is on its way to the client that it did not have."""
        return self.progress is None or self.progress.any_new

    def waited(self, arrived_s: float, queue_s: float, held_s: float) -> None:
        """Note the arrival of the request, and for how long its choices have waited by now."""
        for g in self.generations:
            g.trace.queue_s, g.trace.held_s = queue_s, held_s
            g.trace.clock.start(arrived_s, held_s)

    def begins_stream(self) -> None:
        """Note that the answer begins, and ends later."""
        self.streams = True
        if self.record is not None:
            self.record.streams = True

    def answered(self, status: int) -> None:
        """Count the request by the status of its answer, unless that has only begun."""
        if not self.streams:
            self._router.metrics.requests.labels(self._endpoint, str(status)).inc()
            if self.record is not None and not self.relayed:
                self.record.shown_id = self.shown_id
                request_spans.over(self._router, self.record, self.generations, status, self._code)

    def refused(self, error: ApiError) -> None:
        """Count a request for which no choice was even planned, if that is the service's fault."""
        self._code = error.code
        if not (self.generations or self.relayed or self.resumes) and outcomes.tells_of_service(error.status):
            self._router.generations.over(outcome_of(error, has_first=False))

    def first(self, g: Generation) -> None:
        """Count a first token at once, and not when its answer is over."""
        if self.resumes:
            return
        metrics = self._router.metrics
        few = g.trace.reason == series.FEW_MISSING
        metrics.first_token(len(g.state.prompt), g.state.cached_tokens, g.ttft_s, few_missing=few)
        metrics.ttft.observe(g.ttft_s)
        self._router.generations.first_token(g.trace.clock.end(g.first_s))

    def failed(self, g: Generation, error: ApiError) -> None:
        """Note with what a choice ends."""
        self._code = error.code
        if outcomes.tells_of_service(error.status):
            g.failed, g.error = True, error
            if not self.resumes:
                self._router.metrics.failed(has_first=bool(g.first_s))
        else:
            g.refused = True

    def over(self, *, streamed: bool) -> None:
        """Count each choice, whatever became of it, and write one log line for it."""
        now_s = time.monotonic()
        if streamed and not self.resumes:
            outcomes.compare(self._router, self.generations, now_s)
        error = next((g.error for g in self.generations if g.error is not None), None)
        refused = any(g.refused for g in self.generations)
        for g in self.generations:
            if not self.resumes:
                self._router.metrics.prompt_tokens.inc(len(g.state.prompt))
                self._router.metrics.generated_tokens.inc(g.tokens)
                if not refused or g.first_s:
                    self._settle(g, error, now_s)
            if g.first_s:
                self._log(g)
        if self.streams:
            left = any(not g.ended for g in self.generations)
            self.streams = False
            self.answered(error.status if error is not None else _LEFT if left else 200)

    def _settle(self, g: Generation, error: ApiError | None, now_s: float) -> None:
        metrics, generations, has_first = self._router.metrics, self._router.generations, bool(g.first_s)
        if g.ended:
            outcome = series.COMPLETED
            metrics.ended(len(g.state.prompt), g.tokens, g.tpot_s)
        elif error is not None:
            outcome = outcome_of(error, has_first=has_first)
        else:
            outcome = series.LEFT_AFTER_FIRST if has_first else series.LEFT_BEFORE_FIRST
            if outcomes.missed(g, self._router.settings.objectives, now_s):
                metrics.failed(has_first=has_first)
        generations.over(outcome)
        metrics.duration.observe((g.last_s if g.ended else now_s) - g.started_s)
        if has_first:
            self._after_first(g, now_s)
        elif outcome in (series.LEFT_BEFORE_FIRST, series.TIMED_OUT):
            metrics.ttft.observe(now_s - g.started_s)  # it took longer than that

    def _after_first(self, g: Generation, now_s: float) -> None:
        metrics, generations, trace = self._router.metrics, self._router.generations, g.trace
        if g.tpot_s is not None:
            metrics.tpot.observe(g.tpot_s)
            generations.stage(series.DECODE, g.last_s - g.first_s)
        generations.gap(max(g.longest_gap_s, 0.0 if g.ended else now_s - g.last_s))
        metrics.paths.labels(trace.path).inc()
        metrics.path_reasons.labels(trace.path, trace.reason).inc()
        if trace.path == "remote":
            generations.stage(series.TRANSFER, trace.transfer_s)
            generations.stage(series.EXPOSED_TRANSFER, trace.exposed_s)
            if g.second_s:
                generations.second_token(g.second_s - g.first_s)

    def _log(self, g: Generation) -> None:
        prefill, decode = (w.pod if w else "-" for w in (g.trace.prefill, g.trace.decode))
        log.info(
            "request=%s prefill=%s decode=%s path=%s prompt_tokens=%d tokens=%d ttft_ms=%.1f kv_bytes=%s"
            " transfer_ms=%s attempts=%d queue_ms=%.1f reason=%s id=%s%s",
            g.state.request_id, prefill, decode, g.trace.path, len(g.state.prompt), g.tokens, 1e3 * g.ttft_s,
            "-" if g.trace.kv_bytes is None else g.trace.kv_bytes,
            "-" if g.trace.transfer_s is None else f"{1e3 * g.trace.transfer_s:.1f}",
            g.trace.attempts, 1e3 * g.trace.queue_s, g.trace.reason, self.shown_id,
            "" if self.record is None else f" trace={self.record.trace.trace_id.hex()}",
        )  # fmt: skip
