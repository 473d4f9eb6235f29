"""Traces as messages of OTLP, OpenTelemetry's protocol.

It is imported only by routers that trace: the messages take 60 ms and some megabytes to load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, InstrumentationScope, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1 import trace_pb2

from disagg_router.tracing.spans import Span, Value
from disagg_router.tracing.trace_context import TraceContext

_SAMPLED = 1
_NS = 1_000_000_000
Ids = Callable[[], bytes]


class Encoder:
    """Makes one message of each trace. Messages may be joined: their bytes are those of one with
    all the traces.
    """

    def __init__(self, resource: Mapping[str, Value], version: str, span_id: Ids) -> None:
        self._resource = Resource(attributes=_attributes(resource))
        self._scope = InstrumentationScope(name="disagg_router", version=version)
        self._span_id = span_id

    def encode(
        self, root: Span, trace_id: bytes, span_id: bytes, parent: TraceContext | None, link: TraceContext | None,
        offset_s: float,
    ) -> bytes:  # fmt: skip
        """Return the message of a trace.

        `offset_s` is what must be added to its times to get those since the epoch.
        """
        first = self._span(root, trace_id, span_id, b"" if parent is None else parent.span_id, offset_s)
        first.kind = trace_pb2.Span.SPAN_KIND_SERVER
        if link is not None:
            first.links.add(trace_id=link.trace_id, span_id=link.span_id)
        spans = [first]
        self._add_within(spans, root, trace_id, span_id, offset_s)
        scoped = trace_pb2.ScopeSpans(scope=self._scope, spans=spans)
        traced = trace_pb2.ResourceSpans(resource=self._resource, scope_spans=[scoped])
        message: bytes = ExportTraceServiceRequest(resource_spans=[traced]).SerializeToString()
        return message

    def _add_within(
        self, spans: list[trace_pb2.Span], outer: Span, trace_id: bytes, outer_id: bytes, offset_s: float
    ) -> None:
        for span in outer.within:
            span_id = self._span_id()
            found = self._span(span, trace_id, span_id, outer_id, offset_s)
            found.kind = trace_pb2.Span.SPAN_KIND_INTERNAL
            spans.append(found)
            self._add_within(spans, span, trace_id, span_id, offset_s)

    @staticmethod
    def _span(span: Span, trace_id: bytes, span_id: bytes, parent_id: bytes, offset_s: float) -> trace_pb2.Span:
        found = trace_pb2.Span(
            trace_id=trace_id,
            span_id=span_id,
            parent_span_id=parent_id,
            name=str(span.name),
            flags=_SAMPLED,
            start_time_unix_nano=round((span.start_s + offset_s) * _NS),
            end_time_unix_nano=round((span.end_s + offset_s) * _NS),
            attributes=_attributes(span.attributes),
        )
        if span.failed:
            found.status.code = trace_pb2.Status.STATUS_CODE_ERROR
        return found


def rejected_spans(answer: bytes) -> int:
    """Return how many spans a collector has refused although it has taken the message.

    An answer that is no message says nothing of that.
    """
    message = ExportTraceServiceResponse()
    try:
        message.ParseFromString(answer)
    except DecodeError:
        return 0
    return max(0, int(message.partial_success.rejected_spans))


def _attributes(values: Mapping[str, Value]) -> list[KeyValue]:
    return [KeyValue(key=str(name), value=_value(value)) for name, value in values.items()]


def _value(value: Value) -> AnyValue:
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, tuple):
        return AnyValue(array_value=ArrayValue(values=[AnyValue(string_value=v) for v in value]))
    return AnyValue(string_value=str(value))
