"""PURE: The spans of one choice of an answer, from the records of it that the router keeps anyway.

Their durations are those of the router's metrics, or what workers have reported: no clock of
another machine counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from disagg_router.tracing.attempt_record import CHOOSE, FAILED, AttemptRecord, ChoiceRecord
from disagg_router.tracing.words import Attribute, SpanName
from disagg_wire import series

Value = str | int | float | bool | tuple[str, ...]
# A wait that is shorter is none.
_LEAST_S = 0.001
_QUEUES = {series.QUEUE_PREFILL: "prefill", series.QUEUE_DECODE: "decode"}
_WORD = re.compile(r"[a-z][a-z0-9_]{0,63}")
_OTHER = "_OTHER"


@dataclass(slots=True)
class Span:
    """A span, with the spans within it. Times are monotonic, in seconds."""

    name: str
    start_s: float
    end_s: float
    attributes: Mapping[str, Value] = field(default_factory=dict)
    failed: bool = False
    within: list[Span] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of spans, with those within it."""
        return 1 + sum(span.count for span in self.within)


def error_type(word: str | None) -> str:
    """Return a word for what went wrong that nobody else has made up."""
    return word if word is not None and _WORD.fullmatch(word) else _OTHER


def filled(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return those attributes that are known."""
    return {str(name): value for name, value in attributes.items() if value is not None and value != ""}


def spans_of(choice: ChoiceRecord) -> list[Span]:
    """Return the spans of a choice, in the order in which they began."""
    marks = list(choice.marks)
    begun_s = min(marks[0][1], choice.ended_s) if marks else choice.ended_s
    found = [Span(SpanName.ADMIT, choice.started_s, max(begun_s, choice.started_s))]
    for (what, start_s), (_, end_s) in pairwise([*marks, ("", choice.ended_s)]):
        found += _outside(what, start_s, max(start_s, end_s))
    found += [_attempt(choice, attempt) for attempt in choice.attempts]
    return sorted(found, key=lambda span: span.start_s)


def _outside(what: str, start_s: float, end_s: float) -> Iterator[Span]:
    """Yield the span of a time in which no worker has the request."""
    if what in _QUEUES:
        yield Span(SpanName.QUEUE, start_s, end_s, {Attribute.POOL: _QUEUES[what]})
    elif what == series.HOLD:
        yield Span(SpanName.HOLD, start_s, end_s)
    elif what == CHOOSE:
        yield Span(SpanName.CHOOSE, start_s, end_s)
    elif what == FAILED and end_s - start_s >= _LEAST_S:
        yield Span(SpanName.RETRY, start_s, end_s)


def _attempt(choice: ChoiceRecord, attempt: AttemptRecord) -> Span:
    failed = bool(attempt.failure)
    attributes = filled({
        Attribute.NUMBER: attempt.number,
        Attribute.PATH: attempt.path,
        Attribute.PATH_REASON: attempt.reason,
        Attribute.ERROR_TYPE: error_type(attempt.failure) if failed else None,
    })  # fmt: skip
    within = sorted(_within(choice, attempt), key=lambda span: span.start_s)
    return Span(SpanName.ATTEMPT, attempt.began_s, attempt.ended_s, attributes, failed, within)


def _within(choice: ChoiceRecord, attempt: AttemptRecord) -> Iterator[Span]:
    began_s, ended_s = attempt.began_s, attempt.ended_s
    taken_s = next((at_s for what, at_s in choice.marks if what == series.PREFILL and began_s <= at_s <= ended_s), None)
    yield Span(SpanName.RESERVE, began_s, ended_s if taken_s is None else taken_s)
    if taken_s is None:
        return
    computed_s = ended_s if attempt.computed_s is None else attempt.computed_s
    if attempt.computed_s is None and attempt.moved_s is not None:
        computed_s = attempt.moved_s
    first_s = choice.first_s if choice.first_s is not None and began_s <= choice.first_s <= ended_s else None
    # The client has the first token a moment after the router, and that is what counts.
    if first_s is not None:
        computed_s = first_s
    spent = attempt.spent
    yield Span(
        SpanName.PREFILL, taken_s, max(taken_s, computed_s), filled({
            Attribute.POD: attempt.prefill or attempt.decode,
            Attribute.CACHED_TOKENS: attempt.cached_tokens,
            Attribute.WAIT_S: None if spent is None else spent.wait_s,
            Attribute.COMPUTE_S: None if spent is None else spent.compute_s,
        }),
    )  # fmt: skip
    if attempt.path == "remote" and attempt.moved_s is not None and attempt.transfer_s is not None:
        yield _transfer(attempt, attempt.moved_s, attempt.transfer_s)
    if attempt.decode and attempt.path != "prefill_only":
        yield from _decode(choice, attempt, computed_s)


def _transfer(attempt: AttemptRecord, moved_s: float, transfer_s: float) -> Span:
    """Return the span of the KV's way. Its bytes go while the prompt is still computed."""
    attributes = filled({
        Attribute.KV_BYTES: attempt.kv_bytes,
        Attribute.KV_EXPOSED_S: attempt.exposed_s,
        Attribute.KV_INTERFACE: attempt.interface,
        Attribute.KV_TRANSPORT: attempt.transport,
        Attribute.KV_EVIDENCE: attempt.evidence,
    })  # fmt: skip
    return Span(SpanName.KV_TRANSFER, moved_s - transfer_s, moved_s, attributes)


def _decode(choice: ChoiceRecord, attempt: AttemptRecord, computed_s: float) -> Iterator[Span]:
    """Yield the span of all that comes after the first token."""
    last_s = choice.last_s
    if last_s is None or last_s < computed_s:
        return
    end_s = attempt.ended_s if attempt.failure else min(last_s, attempt.ended_s)
    if end_s > computed_s:
        yield Span(SpanName.DECODE, computed_s, end_s, filled({Attribute.POD: attempt.decode}))
