"""The adapter's Prometheus metrics: the worker's series, from the engine's own metrics.

What the engine does not tell is NaN, and never 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import Counter
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from disagg_protocol.worker_metrics import WorkerMetrics
from disagg_wire import series
from disagg_wire.engine_metrics.readings import Readings

_WORK = {
    "prefill_batches": series.WORKER_PREFILL_BATCHES,
    "prefill_batch_tokens": series.WORKER_PREFILL_BATCH_TOKENS,
    "prefill_batch_tokens_squared": series.WORKER_PREFILL_BATCH_TOKENS_SQUARED,
    "prefill_batch_seconds": series.WORKER_PREFILL_BATCH_SECONDS,
    "decode_steps": series.WORKER_DECODE_STEPS,
    "decode_step_sequences": series.WORKER_DECODE_STEP_SEQUENCES,
    "decode_step_kv_tokens": series.WORKER_DECODE_STEP_KV_TOKENS,
    "decode_step_seconds": series.WORKER_DECODE_STEP_SECONDS,
}


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the adapter when it is scraped."""

    readings: Readings
    work: Mapping[str, float]
    """The sums of WorkDone."""
    waiting_requests: float
    waiting_tokens: float
    running_requests: float
    kv_tokens: float
    kv_capacity_tokens: float


class _SnapshotCollector(Collector):
    """A collector that asks at scrape time."""

    def __init__(self, snapshot: Callable[[], Snapshot | None]) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        now = self._snapshot()
        if now is None:
            return
        for name, help_text, value in (
            (series.WORKER_WAITING_REQUESTS, "Requests queued here", now.waiting_requests),
            (series.WORKER_WAITING_TOKENS, "Prompt tokens queued here", now.waiting_tokens),
            (series.WORKER_RUNNING_REQUESTS, "Requests being computed", now.running_requests),
            (series.WORKER_KV_TOKENS, "Tokens that the KV blocks in use have room for", now.kv_tokens),
            (series.WORKER_KV_CAPACITY_TOKENS, "Tokens that the KV cache has room for", now.kv_capacity_tokens),
        ):
            yield GaugeMetricFamily(name, help_text, value=value)
        r = now.readings
        for name, help_text, value in (
            (series.WORKER_PROMPT_TOKENS, "Prompt tokens computed", r.prompt_tokens_total),
            (series.WORKER_CACHED_TOKENS, "Prompt tokens found in the cache", r.cached_tokens_total),
            (series.WORKER_GENERATED_TOKENS, "Tokens generated", r.generated_tokens_total),
            (series.WORKER_PREEMPTIONS, "Sequences preempted because KV blocks ran out", r.preemptions_total),
            (series.ENGINE_TRANSFER_BYTES, "KV bytes that the engine read from others", r.transfer_bytes_total),
            (series.ENGINE_TRANSFER_SECONDS, "Duration of the engine's KV transfers", r.transfer_s_total),
            (series.ENGINE_TRANSFERS, "KV transfers of the engine that succeeded", r.transfers_total),
            (series.ENGINE_TRANSFER_FAILURES, "KV transfers of the engine that failed", r.transfer_failures_total),
            (series.ENGINE_HANDOVERS_EXPIRED, "Hand-overs that nobody read in their lease", r.expired_total),
            (series.ENGINE_LATE_READS, "Hand-overs that were read after their lease", r.late_reads_total),
            *((name, "As the worker's; see docs/engines.md", now.work[key]) for key, name in _WORK.items()),
        ):
            yield CounterMetricFamily(name, help_text, value=value)
        sources = CounterMetricFamily(
            series.WORKER_PROMPT_TOKENS_BY_SOURCE, "Prompt tokens by where their KV came from", labels=[series.SOURCE]
        )
        for source, value in r.prompt_tokens_by_source.items():
            sources.add_metric([source], value)
        yield sources


class Metrics(WorkerMetrics):
    """The metrics of one adapter."""

    def __init__(self, snapshot: Callable[[], Snapshot | None]) -> None:
        super().__init__("adapter", "Duration from the hand-over to decode's first token, at each end")
        self.registry.register(_SnapshotCollector(snapshot))
        self.other_first_tokens = Counter(
            series.ENGINE_OTHER_FIRST_TOKENS,
            "Hand-overs after which decode's first token was not prefill's, where the two must be equal",
            registry=self.registry,
        )
        self.stranded = Counter(
            series.ENGINE_HANDOVERS_STRANDED,
            "Hand-overs that were given up while prefill held their KV",
            registry=self.registry,
        )
