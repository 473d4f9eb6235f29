"""The operator's own metrics, in a registry of its own."""

from __future__ import annotations

import contextlib
import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from disagg_operator.autoscaling.policy.decision import Decision
from disagg_operator.vocabulary import Key
from disagg_wire import series

_POOL = (series.NAMESPACE, series.DEPLOYMENT, series.POOL)


class Metrics:
    """Names say units; labels are bounded by the number of resources."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
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
        self.writes = Gauge(series.OPERATOR_API_WRITES, "Writing requests to the API server", registry=self.registry)
        self.sweep_seconds = Histogram(
            series.OPERATOR_SWEEP_SECONDS, "Duration of one scrape sweep", registry=self.registry
        )
        self.scaled = Counter(
            series.OPERATOR_SCALINGS, "Decisions carried out", (*_POOL, series.DIRECTION), registry=self.registry
        )
        self._current = Gauge(series.AUTOSCALER_REPLICAS, "Replicas as set", _POOL, registry=self.registry)
        self._wanted = Gauge(series.AUTOSCALER_WANTED_REPLICAS, "Replicas as decided", _POOL, registry=self.registry)
        self._value = Gauge(
            series.AUTOSCALER_SIGNAL,
            "Forecast work in workers, or requests per replica; NaN: unknown",
            _POOL,
            registry=self.registry,
        )
        self._number = Gauge(
            series.AUTOSCALER_NUMBER,
            "What the last decision was made by",
            (*_POOL, series.NAME),
            registry=self.registry,
        )
        self.undecided = Counter(
            series.AUTOSCALER_FAILURES, "Steps that a bug ended", _POOL[:2], registry=self.registry
        )
        self._blind = Gauge(series.AUTOSCALER_BLIND, "1 while held for want of metrics", _POOL, registry=self.registry)

    def decision(self, key: Key, pool: str, decision: Decision) -> None:
        labels = (*key, pool)
        self._current.labels(*labels).set(decision.current)
        self._wanted.labels(*labels).set(decision.to)
        self._value.labels(*labels).set(math.nan if decision.value is None else decision.value)
        self._blind.labels(*labels).set(1 if decision.blind else 0)
        for name, value in decision.numbers.items():
            self._number.labels(*labels, name).set(value)

    def forget(self, key: Key) -> None:
        """The resource is gone: so are its series."""
        for metric in (
            self._current,
            self._wanted,
            self._value,
            self._blind,
            self._number,
            self.scaled,
            self.undecided,
        ):
            for labels in [sample.labels for family in metric.collect() for sample in family.samples]:
                if (labels.get(series.NAMESPACE), labels.get(series.DEPLOYMENT)) == key:
                    with contextlib.suppress(KeyError):
                        metric.remove(*(labels[name] for name in metric._labelnames))

    def text(self) -> bytes:
        return generate_latest(self.registry)
