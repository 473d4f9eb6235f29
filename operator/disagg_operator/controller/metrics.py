"""The operator's own metrics, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
)
from prometheus_client.core import CounterMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from disagg_operator.autoscaling.scaling_metrics import ScalingMetrics
from disagg_operator.controller.condition_metrics import ConditionMetrics
from disagg_operator.controller.deployment_metrics import DeploymentMetrics, Objects
from disagg_operator.vocabulary import Obj
from disagg_wire import series
from disagg_wire.roles import ROLES
from disagg_wire.version import BUILD_INFO_HELP, build_labels

# Whose drains are counted.
COMPONENTS = (*ROLES, "router")
# They would double the number of series.
disable_created_metrics()  # type: ignore[no-untyped-call]


class _Writes(Collector):
    """A counter that somebody else counts."""

    def __init__(self, writes: Callable[[], int]) -> None:
        self._count = writes

    def collect(self) -> Iterator[CounterMetricFamily]:
        told = "Writing requests to the API server, without those for the Lease"
        yield CounterMetricFamily(series.OPERATOR_API_WRITES, told, value=self._count())


class Metrics:
    """The metrics of the operator.

    Names include units; labels are bounded by the number of resources.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        build = build_labels("operator")
        Gauge(series.BUILD_INFO, BUILD_INFO_HELP, list(build), registry=self.registry).labels(**build).set(1)
        self.reconciles = Counter(
            series.OPERATOR_RECONCILES, "Reconcile runs by result", (series.RESULT,), registry=self.registry
        )
        self.reconcile_seconds = Histogram(
            series.OPERATOR_RECONCILE_SECONDS, "Duration of a reconcile run", registry=self.registry
        )
        self.queue_depth = Gauge(series.OPERATOR_QUEUE_DEPTH, "Keys that are due", registry=self.registry)
        self.watch_events = Counter(
            series.OPERATOR_WATCH_EVENTS, "Watch events by kind", (series.KIND,), registry=self.registry
        )
        self._writes: Callable[[], int] = lambda: 0
        self.registry.register(_Writes(lambda: self._writes()))
        self.leading = Gauge(
            series.OPERATOR_LEADING, "1 if this operator leads, 0 if it stands by", registry=self.registry
        )
        self.sweep_seconds = Histogram(
            series.OPERATOR_SWEEP_SECONDS, "Duration of one scrape sweep", registry=self.registry
        )
        self.exchanges = Counter(
            series.OPERATOR_EXCHANGES,
            "Rollouts for which both pools were exchanged at once, because there was no room for a second pair",
            (series.NAMESPACE, series.DEPLOYMENT),
            registry=self.registry,
        )
        self.drains = Counter(
            series.OPERATOR_DRAINS,
            "Drains of workers and routers by outcome: complete, timed_out (requests were cut off), killed (before the"
            " end, with requests), unanswered (nobody waited for the worker) or cancelled",
            (series.OUTCOME,),
            registry=self.registry,
        )
        self.drain_cut_requests = Counter(
            series.OPERATOR_DRAIN_CUT_REQUESTS,
            "Requests that were cut off at the end of a drain or by its end, by component; those of routers are lost",
            (series.COMPONENT,),
            registry=self.registry,
        )
        for component in COMPONENTS:
            self.drain_cut_requests.labels(component)
        self.scaling = ScalingMetrics(self.registry)

    def drain_ended(self, component: str, cut: int | None, killed: bool) -> None:
        """Count the end of a drain; `cut` is None if nobody knows how many requests it has cost."""
        outcome = series.COMPLETE if cut == 0 else series.KILLED if killed else series.TIMED_OUT
        self.drains.labels(outcome).inc()
        self.drain_cut_requests.labels(component).inc(cut or 0)

    def drain_unanswered(self, workers: int) -> None:
        """Count workers that do not answer when they are told to go."""
        self.drains.labels(series.UNANSWERED).inc(workers)

    def drain_cancelled(self) -> None:
        """Count a worker that serves again instead of going."""
        self.drains.labels(series.CANCELLED).inc()

    def watch_writes(self, writes: Callable[[], int]) -> None:
        """Expose the number of writing requests so far that `writes` returns."""
        self._writes = writes

    def watch_deployments(self, resources: Callable[[], Iterable[Obj]], cache: Objects) -> None:
        """Also expose the conditions and pods of what `resources` returns."""
        self.registry.register(ConditionMetrics(resources))
        self.registry.register(DeploymentMetrics(resources, cache))

    def page(self, accept: str = "") -> tuple[bytes, str]:
        """Return the page in a format that the header Accept asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def text(self) -> bytes:
        """Return the page as plain text."""
        return self.page()[0]
