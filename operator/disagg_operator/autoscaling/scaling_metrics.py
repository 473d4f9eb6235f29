"""The autoscaler's metrics of each deployment. Labels are bounded by the number of resources."""

from __future__ import annotations

import contextlib
import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from disagg_operator.autoscaling.policy.decision import CLUSTER_CAPACITY, GPU_BUDGET, MAX_REPLICAS, Decision
from disagg_operator.vocabulary import Key
from disagg_wire import series

_DEPLOYMENT = (series.NAMESPACE, series.DEPLOYMENT)
_POOL = (*_DEPLOYMENT, series.POOL)
_LIMITS = {
    MAX_REPLICAS: series.LIMIT_MAX,
    GPU_BUDGET: series.LIMIT_BUDGET,
    CLUSTER_CAPACITY: series.LIMIT_CLUSTER,
}
_WAKE_S = (1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 1800.0)


class ScalingMetrics:
    """The metrics of the autoscaler, registered in the operator's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.scaled = Counter(
            series.OPERATOR_SCALINGS, "Decisions carried out", (*_POOL, series.DIRECTION), registry=registry
        )
        self.zeros = Counter(
            series.OPERATOR_ZEROS, "Times that both pools went to zero", _DEPLOYMENT, registry=registry
        )
        self.wakes = Counter(series.OPERATOR_WAKES, "Times that both pools woke", _DEPLOYMENT, registry=registry)
        self.wake_seconds = Histogram(
            series.OPERATOR_WAKE_SECONDS,
            "From the order to wake both pools to the first pair that serves",
            buckets=_WAKE_S,
            registry=registry,
        )
        self.undecided = Counter(series.AUTOSCALER_FAILURES, "Steps that a bug ended", _DEPLOYMENT, registry=registry)
        self._current = Gauge(series.AUTOSCALER_REPLICAS, "Replicas as set", _POOL, registry=registry)
        self._wanted = Gauge(series.AUTOSCALER_WANTED_REPLICAS, "Replicas as decided", _POOL, registry=registry)
        self._value = Gauge(
            series.AUTOSCALER_SIGNAL,
            "Forecast work in workers, or requests per replica; NaN: unknown",
            _POOL,
            registry=registry,
        )
        self._number = Gauge(
            series.AUTOSCALER_NUMBER, "What the last decision was made by", (*_POOL, series.NAME), registry=registry
        )
        self._limited = Gauge(
            series.AUTOSCALER_LIMITED,
            "1 while a pool stands at a limit, or cannot meet its objective at any size",
            (*_POOL, series.LIMIT),
            registry=registry,
        )
        self._blind = Gauge(series.AUTOSCALER_BLIND, "1 while held for want of metrics", _POOL, registry=registry)

    def decision(self, key: Key, pool: str, decision: Decision) -> None:
        """Set the series of one pool to its last decision."""
        labels = (*key, pool)
        self._current.labels(*labels).set(decision.current)
        self._wanted.labels(*labels).set(decision.to)
        self._value.labels(*labels).set(math.nan if decision.value is None else decision.value)
        self._blind.labels(*labels).set(1 if decision.blind else 0)
        self._limit(labels, decision)
        for direction in (series.UP, series.DOWN):
            self.scaled.labels(*labels, direction)
        for name, value in decision.numbers.items():
            self._number.labels(*labels, name).set(value)

    def _limit(self, labels: tuple[str, ...], decision: Decision | None) -> None:
        for limit in (*_LIMITS.values(), series.LIMIT_OBJECTIVE):
            self._limited.labels(*labels, limit).set(0)
        if decision is not None:
            if decision.limit in _LIMITS:
                self._limited.labels(*labels, _LIMITS[decision.limit]).set(1)
            self._limited.labels(*labels, series.LIMIT_OBJECTIVE).set(1 if decision.unmet else 0)

    def at_zero(self, key: Key, pool: str) -> None:
        """Set the series of one pool to those of no workers, of which none is wanted."""
        for metric in (self._current, self._wanted, self._value, self._blind):
            metric.labels(*key, pool).set(0)
        self._limit((*key, pool), None)

    def forget(self, key: Key) -> None:
        """Remove the series of a resource that has been deleted."""
        gauges = (self._current, self._wanted, self._value, self._blind, self._limited, self._number)
        for metric in (*gauges, self.scaled, self.zeros, self.wakes, self.undecided):
            for labels in [sample.labels for family in metric.collect() for sample in family.samples]:
                if (labels.get(series.NAMESPACE), labels.get(series.DEPLOYMENT)) == key:
                    with contextlib.suppress(KeyError):
                        metric.remove(*(labels[name] for name in metric._labelnames))
