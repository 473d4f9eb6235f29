"""The spans of one API request, from what is known of it when it is over."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from disagg_router.openai import outcomes
from disagg_router.openai.generation import Generation
from disagg_router.router import Router
from disagg_router.tracing.attempt_record import ChoiceRecord
from disagg_router.tracing.spans import Span, Value, error_type, filled, spans_of
from disagg_router.tracing.trace_context import RequestTrace
from disagg_router.tracing.words import Attribute, SpanName

log = logging.getLogger(__name__)
# Of an answer with more choices, the first ones are shown.
_MOST_CHOICES = 8
_OPERATIONS = {"chat": ("/v1/chat/completions", "chat"), "completions": ("/v1/completions", "text_completion")}


@dataclass(slots=True)
class Admission:
    """When the parts of the admission of a request began and ended, by the monotonic clock."""

    held_s: float
    found_s: float
    planned_s: float

    def spans(self) -> list[Span]:
        """Return its spans."""
        held = [Span(SpanName.HOLD, self.held_s, self.found_s)] if self.found_s > self.held_s else []
        return [*held, Span(SpanName.TOKENIZE, self.found_s, self.planned_s)]


@dataclass(slots=True)
class RequestRecord:
    """What is noted of a request while it runs, for its trace."""

    trace: RequestTrace
    endpoint: str
    shown_id: str = "-"
    streams: bool = False
    started_s: float = field(default_factory=time.monotonic)
    admissions: list[Admission] = field(default_factory=list)

    def planned(self, found_s: float, waited_s: float) -> None:
        """Note that its prompts are tokenized, for a model that was found at `found_s` after so
        many seconds.
        """
        self.admissions.append(Admission(found_s - waited_s, found_s, time.monotonic()))


def over(
    router: Router, record: RequestRecord, generations: Sequence[Generation], status: int, code: str | None
) -> None:
    """Hand the trace of a request that is over to the tracer; `code` says with what it failed.

    If that fails, a trace is lost and nothing else.
    """
    try:
        _hand_over(router, record, generations, status, code)
    except Exception:
        log.exception("a request could not be traced")


def _hand_over(
    router: Router, record: RequestRecord, generations: Sequence[Generation], status: int, code: str | None
) -> None:
    if router.tracer is None:
        return
    now_s, objectives = time.monotonic(), router.settings.objectives
    # A limit of the client's own key has no code here, and is no failure.
    failed = any(g.failed for g in generations) or status >= HTTPStatus.INTERNAL_SERVER_ERROR
    failed = failed or (code is not None and outcomes.tells_of_service(status))
    slow = any(outcomes.late_or_slow(g, objectives, now_s) for g in generations)
    attempts = max((g.trace.attempts for g in generations), default=0)
    why = router.tracer.keeps(record.trace, failed=failed, slow=slow, attempts=attempts)
    if why is not None:
        root = _root(record, generations, status, code, now_s)
        root.attributes = {**root.attributes, Attribute.KEPT: str(why)}
        router.tracer.export(record.trace, root)


def _root(
    record: RequestRecord, generations: Sequence[Generation], status: int, code: str | None, now_s: float
) -> Span:
    path, operation = _OPERATIONS[record.endpoint]
    wrong = (str(status) if code is None else error_type(code)) if status >= HTTPStatus.BAD_REQUEST else None
    attributes: dict[str, Value | None] = {
        Attribute.METHOD: "POST",
        Attribute.ROUTE: path,
        Attribute.URL_PATH: path,
        Attribute.URL_SCHEME: "http",
        Attribute.STATUS_CODE: status,
        Attribute.ERROR_TYPE: wrong,
        Attribute.OPERATION: operation,
        Attribute.PROVIDER: "disagg",
        Attribute.REQUEST_ID: record.shown_id,
        Attribute.STREAM: record.streams,
    }
    within: list[Span] = []
    if generations:
        attributes |= _of_generations(generations)
        within = _within(record, generations, now_s)
    failed = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return Span(f"POST {path}", record.started_s, now_s, filled(attributes), failed, within)


def _of_generations(generations: Sequence[Generation]) -> dict[str, Value | None]:
    first = generations[0]
    identity = first.state.identity
    return {
        # Both are names that are served here, and not what else a client may have asked for.
        Attribute.REQUEST_MODEL: identity.name,
        Attribute.RESPONSE_MODEL: identity.parent or identity.name,
        Attribute.MAX_TOKENS: first.state.max_new_tokens,
        Attribute.CHOICE_COUNT: len(generations) if len(generations) > 1 else None,
        Attribute.INPUT_TOKENS: sum(len(g.state.prompt) for g in generations if not g.shares_prompt),
        Attribute.OUTPUT_TOKENS: sum(g.tokens for g in generations),
        Attribute.CACHED_INPUT_TOKENS: sum(g.state.cached_tokens for g in generations if not g.shares_prompt),
        Attribute.FINISH_REASONS: tuple(g.finish_reason for g in generations if g.finish_reason) or None,
        Attribute.TTFT_S: first.ttft_s if first.first_s else None,
        Attribute.TPOT_S: first.tpot_s,
        Attribute.ATTEMPTS: max(g.trace.attempts for g in generations),
        Attribute.PATH: first.trace.path,
        Attribute.PATH_REASON: first.trace.reason,
    }


def _within(record: RequestRecord, generations: Sequence[Generation], now_s: float) -> list[Span]:
    found: list[Span] = []
    for g in generations[:_MOST_CHOICES]:
        spans = spans_of(_choice(g, now_s))
        if found:
            spans = [span for span in spans if span.name != SpanName.ADMIT]  # they were admitted together
        else:
            spans[0].within = [span for admission in record.admissions for span in admission.spans()]
        if len(generations) > 1:
            for span in spans:
                span.attributes = {**span.attributes, Attribute.CHOICE: g.index}
        found += spans
    return found


def _choice(g: Generation, now_s: float) -> ChoiceRecord:
    ended_s = g.last_s if g.ended and g.last_s else now_s
    present = g.trace.record(ended_s)
    attempts = [*g.trace.past, *([] if present is None else [present])]
    return ChoiceRecord(
        g.started_s, ended_s, tuple(g.trace.clock.marks), attempts, g.first_s or None, g.last_s or None, g.tokens
    )
