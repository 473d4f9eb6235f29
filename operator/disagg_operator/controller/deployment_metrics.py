"""The series of each DisaggDeployment, read from the cache when the page is asked for."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Protocol

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from disagg_operator.kube.pods import is_leaving, is_ready, pool_of
from disagg_operator.kube.resources import DISAGG_POOL, POD, Resource, object_key
from disagg_operator.vocabulary import Key, Obj
from disagg_wire import series
from disagg_wire.labels import LABEL_DEPLOYMENT
from disagg_wire.roles import ROLES

_STATES = (series.DESIRED, series.POD_READY, series.STARTING, series.DRAINING, series.UNSCHEDULABLE)


class Objects(Protocol):
    """What is known of a cluster."""

    def objects(self, resource: Resource) -> list[Obj]:
        """Return all objects of a kind."""


def pod_state(pod: Obj) -> str:
    """Return the state of a worker's pod, a value of the label `state`."""
    if is_leaving(pod):
        return series.DRAINING
    if is_ready(pod):
        return series.POD_READY
    conditions = (pod.get("status") or {}).get("conditions") or []
    hindered = any(c.get("type") == "PodScheduled" and c.get("reason") == "Unschedulable" for c in conditions)
    return series.UNSCHEDULABLE if hindered else series.STARTING


class DeploymentMetrics(Collector):
    """Conditions, generations that status does not tell of yet, and pods of the resources that
    `resources` returns, from what `cache` holds.

    An edit counts from the first look at it on.
    """

    def __init__(
        self, resources: Callable[[], Iterable[Obj]], cache: Objects, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._resources = resources
        self._cache = cache
        self._clock = clock
        self._unobserved: dict[Key, tuple[int, float]] = {}

    def collect(self) -> Iterator[GaugeMetricFamily]:
        of = [series.NAMESPACE, series.DEPLOYMENT]
        conditions = GaugeMetricFamily(
            series.DEPLOYMENT_CONDITION,
            "1 for each condition of a DisaggDeployment as it is now",
            labels=[*of, series.TYPE, series.STATUS, series.REASON],
        )
        unobserved = GaugeMetricFamily(
            series.DEPLOYMENT_UNOBSERVED_SECONDS,
            "How long ago the spec was edited that status does not tell of yet; 0 if it does",
            labels=of,
        )
        pods = GaugeMetricFamily(
            series.POOL_PODS,
            "Pods of a pool by state, and how many it should have",
            labels=[*of, series.POOL, series.STATE],
        )
        resources = {object_key(resource): resource for resource in self._resources()}
        self._unobserved = {key: seen for key, seen in self._unobserved.items() if key in resources}
        counts = self._counts() if resources else {}
        for key, resource in resources.items():
            for condition in (resource.get("status") or {}).get("conditions") or []:
                words = (str(condition.get(k, "")) for k in ("type", "status", "reason"))
                conditions.add_metric([*key, *words], 1)
            unobserved.add_metric([*key], self._unobserved_s(key, resource))
            for pool in ROLES:
                found = counts.get((key, pool), Counter())
                for state in _STATES:
                    pods.add_metric([*key, pool, state], found[state])
        yield from (conditions, unobserved, pods)

    def _unobserved_s(self, key: Key, resource: Obj) -> float:
        generation = int(resource["metadata"].get("generation") or 0)
        if int((resource.get("status") or {}).get("observedGeneration") or 0) >= generation:
            self._unobserved.pop(key, None)
            return 0.0
        _, since_s = self._unobserved.setdefault(key, (generation, self._clock()))
        return self._clock() - since_s

    def _counts(self) -> Mapping[tuple[Key, str], Counter[str]]:
        found: dict[tuple[Key, str], Counter[str]] = {}
        for pool in self._cache.objects(DISAGG_POOL):
            spec = pool.get("spec") or {}
            key = str(pool["metadata"].get("namespace", "")), str(spec.get("deployment", ""))
            found.setdefault((key, str(spec.get("role", ""))), Counter())[series.DESIRED] += int(
                spec.get("replicas") or 0
            )
        for pod in self._cache.objects(POD):
            name = (pod["metadata"].get("labels") or {}).get(LABEL_DEPLOYMENT)
            if name and (role := pool_of(pod)):
                key = str(pod["metadata"].get("namespace", "")), str(name)
                found.setdefault((key, role), Counter())[pod_state(pod)] += 1
        return found
