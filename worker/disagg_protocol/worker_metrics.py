"""The Prometheus metrics that the bundled worker and the adapters both have."""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.exposition import choose_encoder

from disagg_wire import series
from disagg_wire.version import BUILD_INFO_HELP, build_labels

TRANSFER_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
# They would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]


class WorkerMetrics:
    """The metrics of one process that serves as a worker, in a registry of their own.

    `component` is its name in build_info; `transfer_seconds` is the help text of the duration of a
    transfer, of which the bundled worker and the adapters see different parts.
    """

    def __init__(self, component: str, transfer_seconds: str) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = build_labels(component)
        Gauge(series.BUILD_INFO, BUILD_INFO_HELP, list(build), registry=self.registry).labels(**build).set(1)
        self.transfer_bytes = Counter(
            series.KV_TRANSFER_BYTES, "KV bytes moved between workers", [series.DIRECTION], registry=self.registry
        )
        self.transfer_seconds = Histogram(
            series.KV_TRANSFER_SECONDS,
            transfer_seconds,
            [series.DIRECTION],
            registry=self.registry,
            buckets=TRANSFER_BUCKETS_S,
        )
        self.transfer_failures = Counter(
            series.KV_TRANSFER_FAILURES,
            "KV transfers that failed, as each end sees it",
            [series.DIRECTION, series.REASON],
            registry=self.registry,
        )
        self.reservations_refused = Counter(
            series.WORKER_RESERVATIONS_REFUSED, "Requests refused because there was no room", registry=self.registry
        )
        self.info = Info(series.WORKER_IDENTITY, "Identity of this worker", registry=self.registry)

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page in a format that the header Accept asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def render(self) -> bytes:
        """Return the page as plain text."""
        return self.page()[0]
