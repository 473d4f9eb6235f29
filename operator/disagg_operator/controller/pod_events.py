"""Reads the Events of pods that the kubelet cannot start, and wakes their deployments.

Only those of pods that are stuck are read, one pod at a time: a cluster has far more Events than
anyone should watch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, EVENT, name_of, uid_of
from disagg_operator.status.pod_hindrances import hindrance, is_stuck
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.problems import WorkerProblem

log = logging.getLogger(__name__)

_MOST_PODS = 16


class PodEvents:
    """What hinders the pods that are stuck."""

    def __init__(self, kube: Kube, cache: Cache, live: LiveTable, wake: Callable[[Key], None]) -> None:
        self._kube = kube
        self._cache = cache
        self._live = live
        self._wake = wake
        self._found: dict[str, WorkerProblem | None] = {}

    async def look(self) -> None:
        """Read the Events of some stuck pods, those first that were read longest ago."""
        stuck = {
            uid_of(pod): (key, pod)
            for key, pods in self._cache.pods_by_deployment().items()
            for pod in pods
            if is_stuck(pod)
        }
        known = [uid for uid in self._found if uid in stuck]
        order = [*(uid for uid in stuck if uid not in self._found), *known]
        found = {uid: self._found[uid] for uid in known}
        for uid in order[:_MOST_PODS]:
            # What is read last moves to the end.
            found[uid] = await self._hindrance(stuck[uid][1], found.pop(uid, None))
        self._found = found
        self._publish(stuck)

    async def _hindrance(self, pod: Obj, before: WorkerProblem | None) -> WorkerProblem | None:
        namespace = str(pod["metadata"].get("namespace", ""))
        try:
            events = await self._kube.list(EVENT, namespace, fields=f"involvedObject.uid={uid_of(pod)}")
        except KubeError as error:
            log.warning("%s/%s: its Events can't be read: %s", namespace, name_of(pod), error)
            return before
        return hindrance(pod, events)

    def _publish(self, stuck: dict[str, tuple[Key, Obj]]) -> None:
        told: dict[Key, dict[str, WorkerProblem]] = {}
        for uid, (key, pod) in stuck.items():
            if (problem := self._found.get(uid)) is not None:
                told.setdefault(key, {})[name_of(pod)] = problem
        keys = self._cache.keys()
        for key in keys:
            resource = self._cache.get(DISAGG_DEPLOYMENT, key)
            if resource is None:
                continue
            entry = self._live.of(key, uid_of(resource))
            if told.get(key, {}) != entry.hindered:
                entry.hindered = told.get(key, {})
                self._wake(key)
