"""The router's Prometheus metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from disagg_router.objectives import Objectives
from disagg_wire import series
from disagg_wire.rate_limits import Limited
from disagg_wire.version import BUILD_INFO_HELP, build_labels

# They would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]
_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0)
_REQUEST_S = (*_LATENCY_S, 120.0, 300.0, 600.0)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0)


Counts = Callable[[], Mapping[str, int]]
LinkCounts = Callable[[], Mapping[tuple[str, str], int]]
BreakerCounts = Callable[[], Mapping[tuple[str, str], int]]


class _Live(Collector):
    """A collector of the gauges that are read at scrape time."""

    def __init__(self, waiting: Counts, pairs: Counts, links: LinkCounts, holding: Callable[[], int]) -> None:
        self._waiting = waiting
        self._holding = holding
        self._pairs = pairs
        self._links = links

    def collect(self) -> Iterator[Metric]:
        waiting = GaugeMetricFamily(
            series.ROUTER_WAITING_REQUESTS, "Requests that wait for room in a pool", labels=[series.POOL]
        )
        for pool, n in self._waiting().items():
            waiting.add_metric([pool], n)
        yield waiting
        yield GaugeMetricFamily(
            series.ROUTER_HOLDING, "Requests that wait for a model that nobody serves now", value=self._holding()
        )
        pairs = GaugeMetricFamily(series.ROUTER_PAIRS, "Prefill-decode pairs", labels=[series.STATE])
        for state, n in self._pairs().items():
            pairs.add_metric([state], n)
        yield pairs
        links = GaugeMetricFamily(
            series.ROUTER_PAIR_TRANSPORTS,
            "Healthy pairs by what moves their KV, and by how that is known",
            labels=[series.TRANSPORT, series.EVIDENCE],
        )
        for (transport, evidence), n in self._links().items():
            links.add_metric([transport, evidence], n)
        yield links


class BreakerMetrics(Collector):
    """The breakers of workers and pairs, as they are at scrape time: `counts` by kind and state,
    and `changes` so far by kind and new state; and the `budget` of retries.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        counts: BreakerCounts,
        changes: Mapping[tuple[str, str], int],
        budget: Callable[[], float],
    ) -> None:
        self._counts = counts
        self._changes = changes
        self._budget = budget
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        labels, counts = [series.KIND, series.STATE], self._counts()
        now = GaugeMetricFamily(series.ROUTER_BREAKERS, "Workers and pairs that are avoided or tried", labels=labels)
        so_far = CounterMetricFamily(series.ROUTER_BREAKER_CHANGES, "Changes of breakers by new state", labels=labels)
        for kind in (series.WORKER, series.PAIR):
            for state in (series.OPEN, series.HALF_OPEN):
                now.add_metric([kind, state], counts.get((kind, state), 0))
            for state in (series.OPEN, series.HALF_OPEN, series.CLOSED):
                so_far.add_metric([kind, state], self._changes.get((kind, state), 0))
        yield now
        yield so_far
        yield GaugeMetricFamily(
            series.ROUTER_RETRY_BUDGET,
            "Further attempts that may be made at once; below 0, how many wait",
            value=self._budget(),
        )


class SplitMetrics:
    """Streamed answers by who gave them: the pools, or a service beside them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        by, who = [series.BACKEND], "by who answered"
        self._answers = Counter(
            series.ROUTER_SPLIT_REQUESTS, f"Streamed answers that met all objectives, or not, {who}",
            [*by, series.WITHIN], registry=registry,
        )  # fmt: skip
        self._ttft = Histogram(
            series.ROUTER_SPLIT_TTFT_SECONDS,
            f"Arrival to first token, {who}",
            by,
            registry=registry,
            buckets=_LATENCY_S,
        )
        self._tpot = Histogram(
            series.ROUTER_SPLIT_TPOT_SECONDS, f"Time per output token after the first, {who}", by, registry=registry,
            buckets=_PER_TOKEN_S,
        )  # fmt: skip

    def count(self, backend: str, *, within: bool, ttft_s: float | None, tpot_s: float | None) -> None:
        """Count an answer, with its times if it has any."""
        self._answers.labels(backend, _word(within)).inc()
        for histogram, value in ((self._ttft, ttft_s), (self._tpot, tpot_s)):
            if value is not None:
                histogram.labels(backend).observe(value)


class Metrics:
    """The metrics of one router process."""

    def __init__(self, objectives: Objectives | None = None) -> None:
        self._objectives = objectives or Objectives()
        r = self.registry = CollectorRegistry()
        ProcessCollector(registry=r)
        build = build_labels("router")
        Gauge(series.BUILD_INFO, BUILD_INFO_HELP, list(build), registry=r).labels(**build).set(1)
        self._count_requests()
        self.paths = Counter(
            series.ROUTER_REQUESTS_DISAGGREGATED, "Finished requests by path", [series.PATH], registry=r
        )
        self.path_reasons = Counter(
            series.ROUTER_PATH_REASONS,
            "Finished requests by path, and by why their prompts were prefilled there",
            [series.PATH, series.REASON],
            registry=r,
        )
        self._count_faults()
        self.weakened = Counter(series.ROUTER_WEAKENED, "Promises weakened by failovers", [series.WHAT], registry=r)
        self.held = Counter(series.ROUTER_HELD, "Waits for a model that nobody served", [series.OUTCOME], registry=r)
        self.stalled = Counter(series.ROUTER_STALLED_CLIENTS, "Clients cut off for reading nothing", registry=r)
        self.prompt_tokens = Counter(series.ROUTER_PROMPT_TOKENS, "Prompt tokens served", registry=r)
        self.generated_tokens = Counter(series.ROUTER_GENERATED_TOKENS, "Tokens generated", registry=r)
        self._arrivals = Counter(series.ROUTER_ARRIVALS, "Requests that were taken in; each choice is one", registry=r)
        self._arrived = Counter(series.ROUTER_ARRIVED_PROMPT_TOKENS, "Their prompt tokens, cached or not", registry=r)
        self._arrived2 = Counter(
            series.ROUTER_ARRIVED_PROMPT_TOKENS_SQUARED, "Squares of each one's prompt tokens", registry=r
        )
        self._prompts = Counter(
            series.ROUTER_PREFILLED_REQUESTS,
            "Requests with a first token: all, and those whose prompt decode has not prefilled by choice",
            [series.PART],
            registry=r,
        )
        self._prefilled = Counter(
            series.ROUTER_PREFILLED_TOKENS,
            "Prompt tokens of requests with a first token: all, and the uncached",
            [series.PART],
            registry=r,
        )
        self._prefilled2 = Counter(
            series.ROUTER_PREFILLED_TOKENS_SQUARED, "Squares of each request's, as above", [series.PART], registry=r
        )
        self._objective = Counter(
            series.ROUTER_OBJECTIVE_REQUESTS,
            "Requests by whether they met an objective",
            [series.OBJECTIVE, series.WITHIN],
            registry=r,
        )
        self._completions = Counter(series.ROUTER_COMPLETIONS, "Requests that ended with a whole answer", registry=r)
        self._completed = Counter(series.ROUTER_COMPLETED_TOKENS, "Their tokens", [series.KIND], registry=r)
        self._begin_at_zero()

    def _count_requests(self) -> None:
        r = self.registry
        self.requests = Counter(
            series.ROUTER_REQUESTS,
            "API requests by answer; a stream that breaks has the status of its error",
            [series.ENDPOINT, series.CODE],
            registry=r,
        )
        self.running = Gauge(series.ROUTER_RUNNING_REQUESTS, "Requests under way", registry=r)
        self.ttft = Histogram(
            series.ROUTER_TTFT_SECONDS,
            "Arrival to first token; or to the end of the wait, where none came in time or the client left before",
            registry=r,
            buckets=_LATENCY_S,
        )
        self.tpot = Histogram(
            series.ROUTER_TPOT_SECONDS, "Time per output token after the first", registry=r, buckets=_PER_TOKEN_S
        )
        self.duration = Histogram(
            series.ROUTER_REQUEST_SECONDS, "Arrival to the end, whatever became of it", registry=r, buckets=_REQUEST_S
        )

    def _count_faults(self) -> None:
        r = self.registry
        self.failovers = Counter(series.ROUTER_FAILOVERS, "Attempts that failed", [series.REASON], registry=r)
        self.given_up = Counter(
            series.ROUTER_GIVEN_UP, "Workers that were given up, with their streams", [series.REASON], registry=r
        )
        self.resumed = Counter(
            series.ROUTER_RESUMES, "Requests for the rest of a stream, by what became of them", [series.OUTCOME],
            registry=r,
        )  # fmt: skip
        for outcome in series.RESUME_OUTCOMES:
            self.resumed.labels(outcome)
        self.limited = Counter(
            series.ROUTER_LIMITED, "Requests over a limit of their API key", [series.LIMIT], registry=r
        )
        self.retry_waits = Counter(
            series.ROUTER_RETRY_WAITS, "Further attempts that waited for their budget", registry=r
        )

    def _begin_at_zero(self) -> None:
        """Show the series whose labels are known before anything is counted."""
        for what in (series.SEED, series.PENALTY):
            self.weakened.labels(what)
        for reason in (series.WORKER_SILENT, series.WORKER_HUNG, series.WORKER_LOST):
            self.given_up.labels(reason)
        for limited in Limited:
            self.limited.labels(limited)
        for outcome in (series.SERVED, series.REFUSED, series.EXPIRED, series.CANCELLED):
            self.held.labels(outcome)
        for objective, limit in ((series.TTFT, self._objectives.ttft_s), (series.TPOT, self._objectives.tpot_s)):
            for within in (series.TRUE, series.FALSE) if limit is not None else ():
                self._objective.labels(objective, within)
        for part in (series.PROMPT, series.UNCACHED):
            self._prompts.labels(part)
            self._prefilled.labels(part)
            self._prefilled2.labels(part)
        for kind in (series.OUTPUT, series.CONTEXT):
            self._completed.labels(kind)

    def arrived(self, prompt_tokens: int) -> None:
        """Count a request that was taken in."""
        self._arrivals.inc()
        self._arrived.inc(prompt_tokens)
        self._arrived2.inc(prompt_tokens * prompt_tokens)

    def first_token(self, prompt_tokens: int, cached_tokens: int, ttft_s: float, *, few_missing: bool = False) -> None:
        """Count a first token.

        A prompt of which decode lacked so little that it has computed it is no work for prefill.
        """
        uncached = max(1, prompt_tokens - cached_tokens)
        for part, tokens in ((series.PROMPT, prompt_tokens), (series.UNCACHED, 0 if few_missing else uncached)):
            self._prompts.labels(part).inc(min(1, tokens))
            self._prefilled.labels(part).inc(tokens)
            self._prefilled2.labels(part).inc(tokens * tokens)
        limit_s = self._objectives.ttft_limit_s(uncached)
        if limit_s is not None:
            self._objective.labels(series.TTFT, _word(ttft_s <= limit_s)).inc()

    def ended(self, prompt_tokens: int, output_tokens: int, tpot_s: float | None) -> None:
        """Count a whole answer."""
        self._completions.inc()
        self._completed.labels(series.OUTPUT).inc(output_tokens)
        self._completed.labels(series.CONTEXT).inc(prompt_tokens + output_tokens)
        if self._objectives.tpot_s is not None and tpot_s is not None:
            self._objective.labels(series.TPOT, _word(tpot_s <= self._objectives.tpot_s)).inc()

    def failed(self, *, has_first: bool) -> None:
        """Count a failure of the service, which met no objective, whatever its times were."""
        limit = self._objectives.tpot_s if has_first else self._objectives.ttft_s
        if limit is not None:
            self._objective.labels(series.TPOT if has_first else series.TTFT, series.FALSE).inc()

    def watch(self, waiting: Counts, pairs: Counts, links: LinkCounts, holding: Callable[[], int] = lambda: 0) -> None:
        """Read these at every scrape: requests by pool, pairs by state, healthy pairs by
        (transport, evidence), and the requests on hold.
        """
        self.registry.register(_Live(waiting, pairs, links, holding))

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page in a format that the header Accept asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def render(self) -> bytes:
        """Return the page as plain text."""
        return self.page()[0]


def _word(value: bool) -> str:
    return series.TRUE if value else series.FALSE
