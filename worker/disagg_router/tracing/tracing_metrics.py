"""The metrics of traces: how many are kept and why, and what becomes of their spans."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter

from disagg_router.tracing.exporter import DROPS, Counts
from disagg_router.tracing.tail_sampling import Kept
from disagg_wire import series


class TracingMetrics:
    """The counters of a router; all are 0 without tracing."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._kept = Counter(
            series.ROUTER_TRACES, "Traces of requests that were kept, by why", [series.REASON], registry=registry
        )
        self._exported = Counter(series.ROUTER_TRACE_SPANS, "Spans that the collector has taken", registry=registry)
        self._dropped = Counter(
            series.ROUTER_TRACE_SPANS_DROPPED, "Spans that were lost on the way to the collector, by why",
            [series.REASON], registry=registry,
        )  # fmt: skip
        for why in Kept:
            self._kept.labels(why)
        for reason in DROPS:
            self._dropped.labels(reason)
        self.counts = Counts(self._exported.inc, lambda reason, spans: self._dropped.labels(reason).inc(spans))

    def kept(self, why: Kept) -> None:
        """Count a trace."""
        self._kept.labels(why).inc()
