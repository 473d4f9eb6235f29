"""PURE: The place of a request in a trace, as the header `traceparent` names it (W3C)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

TRACEPARENT = "traceparent"
TRACE_ID_BYTES, SPAN_ID_BYTES = 16, 8
# What a later version adds comes after a hyphen.
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-[!-~]*)?")
_SAMPLED = 1
_MOST_CHARS = 512


@dataclass(frozen=True, slots=True)
class TraceContext:
    """A span of somebody else's."""

    trace_id: bytes
    span_id: bytes
    sampled: bool
    """Whether it is recorded there."""


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """The trace of a request that runs."""

    trace_id: bytes
    span_id: bytes
    """The ID of its outermost span."""
    parent: TraceContext | None = None
    """The span that it continues."""
    link: TraceContext | None = None
    """The span of a stranger's that it only refers to."""


def parse(headers: Sequence[str]) -> TraceContext | None:
    """Return what the headers `traceparent` of a request say, or None if that is not valid."""
    if len(headers) != 1 or len(headers[0]) > _MOST_CHARS:
        return None
    found = _FORM.fullmatch(headers[0].strip(" \t"))
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5] is not None):
        return None
    trace_id, span_id = bytes.fromhex(found[2]), bytes.fromhex(found[3])
    if not any(trace_id) or not any(span_id):
        return None
    return TraceContext(trace_id, span_id, bool(int(found[4], 16) & _SAMPLED))
