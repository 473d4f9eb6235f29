"""Collects what the pods of foreign pools tell, from themselves or from a Prometheus.

Time and bytes are bounded by the clients that are used: those of our own pools.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_operator.autoscaling.signals.bounded_parsing import read_all
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target
from disagg_operator.autoscaling.signals.engine_fold import EngineReport
from disagg_operator.autoscaling.signals.engine_reports import report_of_page, reports_of_matrix
from disagg_operator.autoscaling.signals.metrics_page import parse
from disagg_operator.autoscaling.signals.prometheus_access import METRICS_UNAVAILABLE, Access, Unreadable
from disagg_operator.autoscaling.signals.prometheus_query import MAX_AGE_S, pods_query
from disagg_operator.autoscaling.signals.prometheus_source import PrometheusSource
from disagg_operator.autoscaling.signals.samples import WANTED, Sample, from_matrix
from disagg_operator.engines.contract import EngineMeter
from disagg_operator.kube.pods import address_of, identity_of, is_ready
from disagg_operator.kube.resources import name_of, namespace_of
from disagg_operator.vocabulary import Key, Obj

# The names of so many pods fit into the URL of a query.
_PODS_OF_A_QUERY = 50


@dataclass(frozen=True, slots=True)
class Asked:
    """Pods of one kind, and where they serve metrics."""

    pods: tuple[Obj, ...]
    """The pods; only those that are ready are asked."""
    port: int
    path: str

    @property
    def ready(self) -> tuple[Obj, ...]:
        """The pods that should answer."""
        return tuple(pod for pod in self.pods if is_ready(pod) and address_of(pod))


class PodReports:
    """Reads pages, and keeps nothing of them."""

    def __init__(self, direct: DirectDoor, prometheus: PrometheusSource) -> None:
        self._direct = direct
        self._prometheus = prometheus

    async def of_engines(
        self, key: Key, asked: Sequence[Asked], metrics: EngineMeter, access: Access | None, now_s: float
    ) -> list[dict[str, EngineReport | None]]:
        """Return what each ready pod tells, None if it does not answer. Raises Unreadable."""
        if access is not None:
            answer = await self._series(key, asked, metrics.names, access)
            found = await asyncio.to_thread(reports_of_matrix, metrics, answer, now_s, MAX_AGE_S)
            return [{name_of(pod): found.get(name_of(pod)) for pod in one.ready} for one in _nonempty(asked, found)]
        pages = await self._pages(asked)
        return [dict(await read_all(one.items(), lambda page: report_of_page(metrics, page, now_s))) for one in pages]

    async def of_ours(
        self, key: Key, asked: Sequence[Asked], access: Access | None, now_s: float
    ) -> list[dict[str, Sample | None]]:
        """Return the samples of each ready pod of disagg. Raises Unreadable."""
        if access is not None:
            answer = await self._series(key, asked, sorted(WANTED), access)
            stored = await asyncio.to_thread(from_matrix, answer, now_s, MAX_AGE_S) or {}
            return [{name_of(pod): stored.get(name_of(pod)) for pod in one.ready} for one in _nonempty(asked, stored)]
        pages = await self._pages(asked)
        return [dict(await read_all(one.items(), lambda page: parse(page, now_s))) for one in pages]

    def forget(self, key: Key) -> None:
        """Forget a resource that has been deleted, with its credentials."""
        self._prometheus.forget(key)

    async def _pages(self, asked: Sequence[Asked]) -> list[dict[str, str | None]]:
        targets = [
            {
                name_of(pod): Target(
                    identity_of(pod), address_of(pod), one.port, one.path, group=str(namespace_of(pod) or "")
                )
                for pod in one.ready
            }
            for one in asked
        ]
        bodies = await self._direct.fetch([target for one in targets for target in one.values()])
        return [{name: bodies.get(target) for name, target in one.items()} for one in targets]

    async def _series(self, key: Key, asked: Sequence[Asked], names: Sequence[str], access: Access) -> list[Any]:
        pods = sorted({name_of(pod) for one in asked for pod in one.ready})
        answer: list[Any] = []
        for i in range(0, len(pods), _PODS_OF_A_QUERY):
            query = pods_query(key[0], pods[i : i + _PODS_OF_A_QUERY], names)
            answer += await self._prometheus.matrix(key, access, query)
        return answer


def _nonempty(asked: Sequence[Asked], found: Mapping[str, object]) -> Sequence[Asked]:
    """Return what was asked for. Raises Unreadable if Prometheus knows none of many pods."""
    if not found and any(one.ready for one in asked):
        words = "Prometheus has no recent series of these pods with labels namespace and pod"
        raise Unreadable(words, METRICS_UNAVAILABLE)
    return asked
