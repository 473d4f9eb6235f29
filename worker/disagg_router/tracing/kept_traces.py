"""The traces of a router: begun with each request, and kept or forgotten when it is over."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping, Sequence

from disagg_router.settings import Settings
from disagg_router.tracing import otlp
from disagg_router.tracing.exporter import Collector, Exporter
from disagg_router.tracing.span_queue import SpanQueue
from disagg_router.tracing.spans import Span, Value
from disagg_router.tracing.tail_sampling import Ending, Kept, why_kept
from disagg_router.tracing.trace_context import SPAN_ID_BYTES, TRACE_ID_BYTES, RequestTrace, parse
from disagg_router.tracing.tracing_metrics import TracingMetrics
from disagg_wire.version import VERSION


class Tracer:
    """The tracer of a router whose settings name a collector."""

    def __init__(self, settings: Settings, metrics: TracingMetrics, resource: Mapping[str, Value]) -> None:
        self._ratio = settings.tracing_sampling_ratio
        self._trusts = settings.tracing_trust_parent
        self._metrics = metrics
        # Seeded by the operating system; IDs must differ, and need not be secret.
        self._random = random.Random(os.urandom(32))
        self._encoder = otlp.Encoder(resource, VERSION, lambda: self._id(SPAN_ID_BYTES))
        collector = Collector(
            settings.tracing_endpoint or "",
            settings.tracing_timeout_s,
            headers_file=settings.tracing_headers_file,
            ca_file=settings.tracing_ca_file,
        )
        queue = SpanQueue(settings.tracing_queue_spans, settings.tracing_queue_bytes)
        self.exporter = Exporter(collector, queue, metrics.counts, otlp.rejected_spans)

    def _id(self, size: int) -> bytes:
        while True:
            found = self._random.randbytes(size)
            if any(found):
                return found

    def begin(self, traceparents: Sequence[str]) -> RequestTrace:
        """Return the trace of a request that has these headers `traceparent`."""
        given, span_id = parse(traceparents), self._id(SPAN_ID_BYTES)
        if given is not None and self._trusts:
            return RequestTrace(given.trace_id, span_id, parent=given)
        return RequestTrace(self._id(TRACE_ID_BYTES), span_id, link=given)

    def keeps(self, trace: RequestTrace, *, failed: bool, slow: bool, attempts: int) -> Kept | None:
        """Return why the trace of a request that is over is kept, or None if it is not, or cannot
        be sent. What is not kept costs no more than this.
        """
        sampled = None if trace.parent is None else trace.parent.sampled
        why = why_kept(Ending(trace.trace_id, sampled, failed, slow, attempts), self._ratio)
        if why is None:
            return None
        self._metrics.kept(why)
        return why if self.exporter.has_room(1) else None

    def export(self, trace: RequestTrace, root: Span) -> None:
        """Send a trace; `root` becomes its outermost span."""
        offset_s = time.time() - time.monotonic()
        content = self._encoder.encode(root, trace.trace_id, trace.span_id, trace.parent, trace.link, offset_s)
        self.exporter.add(content, root.count)
