"""The operator's own metrics, in a registry of its own."""

from __future__ import annotations

import contextlib
import math

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from disagg_operator.autoscaling.policy import Decision
from disagg_operator.queue import Key
from disagg_wire.version import BUILD_INFO, BUILD_INFO_HELP, build_labels

_POOL = ("namespace", "deployment", "pool")


class Metrics:
    """Names say units; labels are bounded by the number of resources."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        build = build_labels("operator")
        Gauge(BUILD_INFO, BUILD_INFO_HELP, list(build), registry=self.registry).labels(**build).set(1)
        self.reconciles = Counter("disagg_operator_reconciles", "Reconcile runs by result", ("result",), registry=self.registry)
        self.reconcile_seconds = Histogram("disagg_operator_reconcile_seconds", "Duration of a reconcile run", registry=self.registry)
        self.queue_depth = Gauge("disagg_operator_queue_depth", "Keys that are due", registry=self.registry)
        self.watch_events = Counter("disagg_operator_watch_events", "Watch events by kind", ("kind",), registry=self.registry)
        self.writes = Gauge("disagg_operator_api_writes", "Writing requests to the API server", registry=self.registry)
        self.sweep_seconds = Histogram("disagg_operator_sweep_seconds", "Duration of one scrape sweep", registry=self.registry)
        self.scaled = Counter("disagg_operator_scalings", "Decisions carried out", (*_POOL, "direction"), registry=self.registry)
        self._current = Gauge("disagg_autoscaler_replicas", "Replicas as set", _POOL, registry=self.registry)
        self._wanted = Gauge("disagg_autoscaler_wanted_replicas", "Replicas as decided", _POOL, registry=self.registry)
        self._value = Gauge(
            "disagg_autoscaler_signal",
            "Forecast work in workers, or requests per replica; NaN: unknown",
            _POOL,
            registry=self.registry,
        )
        self._number = Gauge("disagg_autoscaler_number", "What the last decision was made by", (*_POOL, "name"), registry=self.registry)
        self.undecided = Counter("disagg_autoscaler_failures", "Steps that a bug ended", _POOL[:2], registry=self.registry)
        self._blind = Gauge("disagg_autoscaler_blind", "1 while held for want of metrics", _POOL, registry=self.registry)

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
        for metric in (self._current, self._wanted, self._value, self._blind, self._number, self.scaled, self.undecided):
            for labels in [sample.labels for family in metric.collect() for sample in family.samples]:
                if (labels.get("namespace"), labels.get("deployment")) == key:
                    with contextlib.suppress(KeyError):
                        metric.remove(*(labels[name] for name in metric._labelnames))

    def text(self) -> bytes:
        return generate_latest(self.registry)
