"""The worker's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from disagg_wire.version import BUILD_INFO, BUILD_INFO_HELP, build_labels
from disagg_worker.engine.api import Load

_TRANSFER_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_WORK = {
    "prefill_batches": "Prefill batches computed",
    "prefill_batch_tokens": "Prompt tokens in them",
    "prefill_batch_tokens_squared": "Squares of each prompt's tokens in them",
    "prefill_batch_seconds": "Time that they took",
    "decode_steps": "Decode steps made",
    "decode_step_sequences": "Sequences in them, summed over the steps",
    "decode_step_kv_tokens": "KV tokens in them, summed over the steps",
    "decode_step_seconds": "Time that they took",
}


class _LoadCollector(Collector):
    """Reads the engine's load at scrape time, so that gauges are never stale."""

    def __init__(self, load: Callable[[], Load | None], block_tokens: int) -> None:
        self._load = load
        self._block_tokens = block_tokens

    def collect(self) -> Iterator[Metric]:
        load = self._load()
        if load is None:
            return
        yield GaugeMetricFamily("disagg_worker_waiting_requests", "Requests queued here", value=load.waiting_requests)
        yield GaugeMetricFamily("disagg_worker_waiting_tokens", "Prompt tokens queued here", value=load.waiting_tokens)
        yield GaugeMetricFamily("disagg_worker_running_requests", "Requests being computed", value=load.running_requests)
        blocks = GaugeMetricFamily("disagg_worker_kv_blocks", "KV cache blocks by state", labels=["state"])
        for state, n in (("free", load.blocks_free), ("used", load.blocks_used), ("leased", load.blocks_leased)):
            blocks.add_metric([state], n)
        yield blocks
        held = self._block_tokens * (load.blocks_total - load.blocks_free)
        yield GaugeMetricFamily("disagg_worker_kv_tokens", "Tokens that the KV blocks in use have room for", value=held)
        capacity = self._block_tokens * load.blocks_total
        yield GaugeMetricFamily("disagg_worker_kv_capacity_tokens", "Tokens that the whole KV cache has room for", value=capacity)
        for name, value in load.work_total.items():
            yield CounterMetricFamily(f"disagg_worker_{name}", _WORK[name], value=value)
        yield CounterMetricFamily("disagg_worker_prompt_tokens", "Prompt tokens computed", value=load.prompt_tokens_total)
        yield CounterMetricFamily("disagg_worker_cached_tokens", "Prompt tokens found in the cache", value=load.cached_tokens_total)
        yield CounterMetricFamily("disagg_worker_generated_tokens", "Tokens generated", value=load.generated_tokens_total)
        yield CounterMetricFamily("disagg_worker_preemptions", "Sequences put back for want of KV blocks", value=load.preemptions_total)
        yield CounterMetricFamily("disagg_worker_late_prompts", "First tokens that came after they were due", value=load.late_prompts_total)
        limit = "Tokens that a prefill batch may hold now: less while decode has little room"
        yield GaugeMetricFamily("disagg_prefill_batch_limit_tokens", limit, value=load.prefill_limit_tokens)
        most = "Tokens that a prefill batch may hold while decode has room"
        yield GaugeMetricFamily("disagg_prefill_batch_most_tokens", most, value=load.prefill_most_tokens)
        yield GaugeMetricFamily("disagg_worker_host_cache_bytes", "Evicted KV kept in host memory", value=load.host_cache_bytes)
        steps = CounterMetricFamily("disagg_worker_steps", "Forward passes by kind", labels=["kind"])
        for kind, n in load.steps_total.items():
            steps.add_metric([kind], n)
        yield steps
        seconds = CounterMetricFamily("disagg_worker_step_seconds", "Time of steps, in the network and beside it", labels=["part"])
        for part, value in load.step_seconds_total.items():
            seconds.add_metric([part], value)
        yield seconds


class Metrics:
    """One process's metrics."""

    def __init__(self, load: Callable[[], Load | None], block_tokens: int) -> None:
        self.registry = CollectorRegistry()
        build = build_labels("worker")
        Gauge(BUILD_INFO, BUILD_INFO_HELP, list(build), registry=self.registry).labels(**build).set(1)
        self.registry.register(_LoadCollector(load, block_tokens))
        self.transfer_bytes = Counter("disagg_kv_transfer_bytes", "KV bytes moved between workers", ["direction"], registry=self.registry)
        self.transfer_seconds = Histogram(
            "disagg_kv_transfer_seconds", "First to last byte", registry=self.registry, buckets=_TRANSFER_BUCKETS_S
        )
        self.transfer_exposed_seconds = Histogram(
            "disagg_kv_transfer_exposed_seconds",
            "Part of the transfer after the computation",
            registry=self.registry,
            buckets=_TRANSFER_BUCKETS_S,
        )
        self.transfer_failures = Counter("disagg_kv_transfer_failures", "Transfers that failed", ["reason"], registry=self.registry)
        self.reservations_refused = Counter(
            "disagg_worker_reservations_refused", "Requests refused for want of room", registry=self.registry
        )
        self.info = Info("disagg_worker", "Identity of this worker", registry=self.registry)

    def render(self) -> bytes:
        return generate_latest(self.registry)
