"""The router's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)


class _Live(Collector):
    """Gauges that are read at scrape time."""

    def __init__(self, waiting: Callable[[], Mapping[str, int]], pairs: Callable[[], Mapping[str, int]]) -> None:
        self._waiting = waiting
        self._pairs = pairs

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily("disagg_router_waiting_requests", "Requests that wait for room in a pool", labels=["pool"])
        for pool, n in self._waiting().items():
            waiting.add_metric([pool], n)
        yield waiting
        pairs = GaugeMetricFamily("disagg_router_pairs", "Prefill-decode pairs", labels=["state"])
        for state, n in self._pairs().items():
            pairs.add_metric([state], n)
        yield pairs


class Metrics:
    """One process's metrics."""

    def __init__(self) -> None:
        r = self.registry = CollectorRegistry()
        self.requests = Counter("disagg_router_requests", "API requests by answer", ["endpoint", "code"], registry=r)
        self.running = Gauge("disagg_router_running_requests", "Requests under way", registry=r)
        self.ttft = Histogram("disagg_router_ttft_seconds", "Arrival to first token", registry=r, buckets=_LATENCY_S)
        self.tpot = Histogram("disagg_router_tpot_seconds", "Time per output token after the first", registry=r, buckets=_PER_TOKEN_S)
        self.duration = Histogram("disagg_router_request_seconds", "Arrival to last token", registry=r, buckets=_LATENCY_S)
        self.paths = Counter("disagg_router_requests_disaggregated", "Finished requests by path", ["path"], registry=r)
        self.failovers = Counter("disagg_router_failovers", "Attempts that failed", ["reason"], registry=r)
        self.prompt_tokens = Counter("disagg_router_prompt_tokens", "Prompt tokens served", registry=r)
        self.generated_tokens = Counter("disagg_router_generated_tokens", "Tokens generated", registry=r)

    def watch(self, waiting: Callable[[], Mapping[str, int]], pairs: Callable[[], Mapping[str, int]]) -> None:
        self.registry.register(_Live(waiting, pairs))

    def render(self) -> bytes:
        return generate_latest(self.registry)
