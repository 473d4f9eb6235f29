"""The conditions of all resources as a series, read from the cache when the page is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from disagg_operator.vocabulary import Obj
from disagg_wire import series

_LABELS = (series.NAMESPACE, series.NAME, series.TYPE, series.STATUS, series.REASON)


class ConditionMetrics(Collector):
    """One sample for each condition of each resource that `resources` returns.

    A condition has one status and one reason at a time, so a sample that is gone was another one.
    """

    def __init__(self, resources: Callable[[], Iterable[Obj]]) -> None:
        self._resources = resources

    def collect(self) -> Iterator[GaugeMetricFamily]:
        family = GaugeMetricFamily(series.CONDITION, "Conditions of resources, 1 for those that hold", labels=_LABELS)
        for resource in self._resources():
            meta = resource["metadata"]
            for condition in (resource.get("status") or {}).get("conditions") or []:
                words = (str(condition.get(k, "")) for k in ("type", "status", "reason"))
                family.add_metric((str(meta.get("namespace", "")), str(meta["name"]), *words), 1)
        yield family
