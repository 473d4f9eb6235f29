"""The worker's Prometheus metrics."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from disagg_protocol.worker_metrics import TRANSFER_BUCKETS_S, WorkerMetrics
from disagg_wire import series
from disagg_worker.server.link_metrics import LinkMetrics
from disagg_worker.values.engine_load import Load

# The series of the engine's work, by the names of `Load.work_total`, with their help texts.
_WORK = {
    "prefill_batches": (series.WORKER_PREFILL_BATCHES, "Prefill batches computed"),
    "prefill_batch_tokens": (series.WORKER_PREFILL_BATCH_TOKENS, "Prompt tokens in prefill batches"),
    "prefill_batch_tokens_squared": (
        series.WORKER_PREFILL_BATCH_TOKENS_SQUARED,
        "Sum of the squares of each prompt's tokens in prefill batches",
    ),
    "prefill_batch_seconds": (series.WORKER_PREFILL_BATCH_SECONDS, "Duration of prefill batches"),
    "decode_steps": (series.WORKER_DECODE_STEPS, "Decode steps computed"),
    "decode_step_sequences": (series.WORKER_DECODE_STEP_SEQUENCES, "Sequences in decode steps, summed over the steps"),
    "decode_step_kv_tokens": (series.WORKER_DECODE_STEP_KV_TOKENS, "KV tokens in decode steps, summed over the steps"),
    "decode_step_seconds": (series.WORKER_DECODE_STEP_SECONDS, "Duration of decode steps"),
}


class _LoadCollector(Collector):
    """A collector that reads the engine's load at scrape time, so that gauges are never stale."""

    def __init__(
        self, load: Callable[[], Load | None], transferred_tokens: Callable[[], int], block_tokens: int
    ) -> None:
        self._load = load
        self._transferred_tokens = transferred_tokens
        self._block_tokens = block_tokens

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        if load is None:
            return
        yield GaugeMetricFamily(series.WORKER_WAITING_REQUESTS, "Requests queued here", value=load.waiting_requests)
        yield GaugeMetricFamily(series.WORKER_WAITING_TOKENS, "Prompt tokens queued here", value=load.waiting_tokens)
        yield GaugeMetricFamily(series.WORKER_RUNNING_REQUESTS, "Requests being computed", value=load.running_requests)
        yield GaugeMetricFamily(
            series.WORKER_PROGRESS_TIMESTAMP_SECONDS,
            "When the engine's loop last ended a step or had nothing to do",
            value=time.time() - load.silent_s,
        )
        blocks = GaugeMetricFamily(series.WORKER_KV_BLOCKS, "KV cache blocks by state", labels=[series.STATE])
        for state, n in (("free", load.blocks_free), ("used", load.blocks_used), ("leased", load.blocks_leased)):
            blocks.add_metric([state], n)
        yield blocks
        held = self._block_tokens * (load.blocks_total - load.blocks_free)
        yield GaugeMetricFamily(series.WORKER_KV_TOKENS, "Tokens that the KV blocks in use have room for", value=held)
        capacity = self._block_tokens * load.blocks_total
        yield GaugeMetricFamily(
            series.WORKER_KV_CAPACITY_TOKENS, "Tokens that the whole KV cache has room for", value=capacity
        )
        for name, value in load.work_total.items():
            yield CounterMetricFamily(*_WORK[name], value=value)
        yield CounterMetricFamily(series.WORKER_PROMPT_TOKENS, "Prompt tokens computed", value=load.prompt_tokens_total)
        yield CounterMetricFamily(
            series.WORKER_CACHED_TOKENS, "Prompt tokens found in the cache", value=load.cached_tokens_total
        )
        sources = CounterMetricFamily(
            series.WORKER_PROMPT_TOKENS_BY_SOURCE, "Prompt tokens by where their KV came from", labels=[series.SOURCE]
        )
        sources.add_metric([series.LOCAL_COMPUTE], load.prompt_tokens_total - load.rest_tokens_total)
        sources.add_metric([series.LOCAL_REST], load.rest_tokens_total)
        sources.add_metric([series.LOCAL_CACHE_HIT], load.cached_tokens_total)
        sources.add_metric([series.EXTERNAL_KV_TRANSFER], self._transferred_tokens())
        yield sources
        yield CounterMetricFamily(series.WORKER_GENERATED_TOKENS, "Tokens generated", value=load.generated_tokens_total)
        yield CounterMetricFamily(
            series.WORKER_PREEMPTIONS, "Sequences preempted because KV blocks ran out", value=load.preemptions_total
        )
        yield CounterMetricFamily(
            series.WORKER_LATE_PROMPTS, "First tokens that came after they were due", value=load.late_prompts_total
        )
        limit = "Tokens that a prefill batch may hold now: less while decode has little room"
        yield GaugeMetricFamily(series.PREFILL_BATCH_LIMIT_TOKENS, limit, value=load.prefill_limit_tokens)
        most = "Tokens that a prefill batch may hold while decode has room"
        yield GaugeMetricFamily(series.PREFILL_BATCH_MOST_TOKENS, most, value=load.prefill_most_tokens)
        yield GaugeMetricFamily(
            series.WORKER_HOST_CACHE_BYTES, "Evicted KV kept in host memory", value=load.host_cache_bytes
        )
        steps = CounterMetricFamily(series.WORKER_STEPS, "Forward passes by kind", labels=[series.KIND])
        for kind, n in load.steps_total.items():
            steps.add_metric([kind], n)
        yield steps
        seconds = CounterMetricFamily(
            series.WORKER_STEP_SECONDS, "Duration of steps, in the network and outside it", labels=[series.PART]
        )
        for part, value in load.step_seconds_total.items():
            seconds.add_metric([part], value)
        yield seconds


class Metrics(WorkerMetrics):
    """The metrics of one worker process."""

    def __init__(self, load: Callable[[], Load | None], block_tokens: int) -> None:
        super().__init__("worker", "Duration of KV transfers, from the first byte to the last, at each end")
        self._lock = threading.Lock()
        self._transferred_tokens = 0
        self.registry.register(_LoadCollector(load, lambda: self._transferred_tokens, block_tokens))
        self.transfer_exposed_seconds = Histogram(
            series.KV_TRANSFER_EXPOSED_SECONDS,
            "Duration of the part of KV transfers after the computation",
            registry=self.registry,
            buckets=TRANSFER_BUCKETS_S,
        )
        self.transfers = Counter(
            series.KV_TRANSFERS,
            "KV transfers by what moved them",
            [series.DIRECTION, series.TRANSPORT, series.EVIDENCE],
            registry=self.registry,
        )
        self.quarantined_blocks = Gauge(
            series.KV_QUARANTINED_BLOCKS,
            "KV blocks into which a silent prefill worker may still write",
            registry=self.registry,
        )
        self.saved_blocks = Counter(
            series.KV_TRANSFER_SAVED_BLOCKS, "KV blocks that were here already and not sent", registry=self.registry
        )
        self.saved_bytes = Counter(series.KV_TRANSFER_SAVED_BYTES, "Their bytes", registry=self.registry)
        self.links = LinkMetrics(self.registry)

    def received(self, kv_bytes: int, transfer_s: float, tokens: int) -> None:
        """Count KV of a prompt that another worker has computed, of so many tokens. Any thread may
        call this.
        """
        self.transfer_bytes.labels(series.RECEIVED).inc(kv_bytes)
        self.transfer_seconds.labels(series.RECEIVED).observe(transfer_s)
        self.links.moved(series.RECEIVED, transfer_s)
        with self._lock:
            self._transferred_tokens += tokens

    def saved(self, blocks: int, kv_bytes: int) -> None:
        """Count KV of a prompt that was here already. Any thread may call this."""
        self.saved_blocks.inc(blocks)
        self.saved_bytes.inc(kv_bytes)
