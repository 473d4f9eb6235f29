"""The router's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from disagg_wire.version import BUILD_INFO, BUILD_INFO_HELP, build_labels

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)


_TIMES_ALONE = 5.0  # a long prompt may take so many times what it takes alone


@dataclass(frozen=True, slots=True)
class Objectives:
    """What `disagg_router_objective_requests_total` counts against; None: not counted. `prefill_s`: a, b and c of the time that a
    prompt of n uncached tokens takes alone, a + b*n + c*n^2: a long one can't be faster."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    prefill_s: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def alone_s(self, uncached_tokens: int) -> float:
        a, b, c = self.prefill_s
        return a + b * uncached_tokens + c * uncached_tokens * uncached_tokens

    def ttft_limit_s(self, uncached_tokens: int) -> float | None:
        return None if self.ttft_s is None else max(self.ttft_s, _TIMES_ALONE * self.alone_s(uncached_tokens))


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

    def __init__(self, objectives: Objectives | None = None) -> None:
        self._objectives = objectives or Objectives()
        r = self.registry = CollectorRegistry()
        build = build_labels("router")
        Gauge(BUILD_INFO, BUILD_INFO_HELP, list(build), registry=r).labels(**build).set(1)
        self.requests = Counter("disagg_router_requests", "API requests by answer", ["endpoint", "code"], registry=r)
        self.running = Gauge("disagg_router_running_requests", "Requests under way", registry=r)
        self.ttft = Histogram("disagg_router_ttft_seconds", "Arrival to first token", registry=r, buckets=_LATENCY_S)
        self.tpot = Histogram("disagg_router_tpot_seconds", "Time per output token after the first", registry=r, buckets=_PER_TOKEN_S)
        self.duration = Histogram("disagg_router_request_seconds", "Arrival to last token", registry=r, buckets=_LATENCY_S)
        self.paths = Counter("disagg_router_requests_disaggregated", "Finished requests by path", ["path"], registry=r)
        self.failovers = Counter("disagg_router_failovers", "Attempts that failed", ["reason"], registry=r)
        self.prompt_tokens = Counter("disagg_router_prompt_tokens", "Prompt tokens served", registry=r)
        self.generated_tokens = Counter("disagg_router_generated_tokens", "Tokens generated", registry=r)
        self._arrivals = Counter("disagg_router_arrivals", "Requests that were taken in; each choice is one", registry=r)
        self._arrived = Counter("disagg_router_arrived_prompt_tokens", "Their prompt tokens, cached or not", registry=r)
        self._arrived2 = Counter("disagg_router_arrived_prompt_tokens_squared", "Squares of each one's prompt tokens", registry=r)
        self._prefilled = Counter(
            "disagg_router_prefilled_tokens", "Prompt tokens of requests with a first token: all, and the uncached", ["part"], registry=r
        )
        self._prefilled2 = Counter("disagg_router_prefilled_tokens_squared", "Squares of each request's, as above", ["part"], registry=r)
        self._objective = Counter(
            "disagg_router_objective_requests", "Requests by whether they met an objective", ["objective", "within"], registry=r
        )
        self._completions = Counter("disagg_router_completions", "Requests that ended with a whole answer", registry=r)
        self._completed = Counter("disagg_router_completed_tokens", "Tokens of completed requests", ["kind"], registry=r)
        for objective, limit in (("ttft", self._objectives.ttft_s), ("tpot", self._objectives.tpot_s)):
            for within in ("true", "false") if limit is not None else ():
                self._objective.labels(objective, within)
        for part in ("prompt", "uncached"):
            self._prefilled.labels(part)
            self._prefilled2.labels(part)
        for kind in ("output", "context"):
            self._completed.labels(kind)

    def arrived(self, prompt_tokens: int) -> None:
        """A request was taken in."""
        self._arrivals.inc()
        self._arrived.inc(prompt_tokens)
        self._arrived2.inc(prompt_tokens * prompt_tokens)

    def first_token(self, prompt_tokens: int, cached_tokens: int, ttft_s: float) -> None:
        uncached = max(1, prompt_tokens - cached_tokens)
        for part, tokens in (("prompt", prompt_tokens), ("uncached", uncached)):
            self._prefilled.labels(part).inc(tokens)
            self._prefilled2.labels(part).inc(tokens * tokens)
        limit_s = self._objectives.ttft_limit_s(uncached)
        if limit_s is not None:
            self._objective.labels("ttft", _word(ttft_s <= limit_s)).inc()

    def ended(self, prompt_tokens: int, output_tokens: int, tpot_s: float | None) -> None:
        """A whole answer."""
        self._completions.inc()
        self._completed.labels("output").inc(output_tokens)
        self._completed.labels("context").inc(prompt_tokens + output_tokens)
        if self._objectives.tpot_s is not None and tpot_s is not None:
            self._objective.labels("tpot", _word(tpot_s <= self._objectives.tpot_s)).inc()

    def failed(self, *, has_first: bool) -> None:
        """The service's fault: it met no objective, whatever its times were."""
        limit = self._objectives.tpot_s if has_first else self._objectives.ttft_s
        if limit is not None:
            self._objective.labels("tpot" if has_first else "ttft", "false").inc()

    def watch(self, waiting: Callable[[], Mapping[str, int]], pairs: Callable[[], Mapping[str, int]]) -> None:
        self.registry.register(_Live(waiting, pairs))

    def render(self) -> bytes:
        return generate_latest(self.registry)


def _word(value: bool) -> str:
    return "true" if value else "false"
