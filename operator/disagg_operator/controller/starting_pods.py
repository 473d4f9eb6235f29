"""Asks the workers that are not ready what keeps them from it, and what they have loaded so far.

A worker answers `info` before it is ready. If it knows why it cannot become ready (the field
`problem` in docs/protocol.md), the reconcile of its deployment is woken, and status says so.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target, parse_json_object
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.pods import address_of, http_port, identity_of, is_ready, pool_of
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, labels_of, name_of, uid_of
from disagg_operator.rollout.load_watch import PodLoad
from disagg_operator.rollout.values import WorkersKey
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.labels import LABEL_REVISION
from disagg_wire.load_progress import loaded_bytes
from disagg_wire.ports import WORKER_PORT
from disagg_wire.problems import PROBLEM, WorkerProblem, parse_problem
from disagg_wire.protocol import INFO_PATH

# What is knowable must be in status within five seconds.
LOOK_INTERVAL_S = 2.0
# What a worker has said holds while it misses a few calls.
_HOLDS_S = 15.0


@dataclass(frozen=True, slots=True)
class _Told:
    problem: WorkerProblem
    at_s: float


class StartingPods:
    """The workers that are not ready, and what they say about themselves. `clock` is monotonic."""

    def __init__(
        self,
        cache: Cache,
        live: LiveTable,
        door: DirectDoor,
        bearer_of: Callable[[Key], Awaitable[str | None]],
        wake: Callable[[Key], None],
        clock: Callable[[], float],
    ) -> None:
        self._cache = cache
        self._live = live
        self._door = door
        self._bearer_of = bearer_of
        self._wake = wake
        self._clock = clock
        self._told: dict[str, _Told] = {}

    async def look(self) -> None:
        """Ask all of them once, and wake the deployments for which an answer has changed."""
        asked: dict[Key, list[Obj]] = {}
        for key, pods in self._cache.pods_by_deployment().items():
            unready = [pod for pod in pods if pool_of(pod) and _can_answer(pod)]
            if unready and self._cache.get(DISAGG_DEPLOYMENT, key) is not None:
                asked[key] = unready
        targets = {
            identity_of(pod): Target(
                identity_of(pod), address_of(pod), http_port(pod, WORKER_PORT), INFO_PATH, await self._bearer(key)
            )
            for key, pods in asked.items()
            for pod in pods
        }
        bodies = await self._door.fetch(targets.values())
        now_s, before, self._told = self._clock(), self._told, {}
        loaded: dict[str, int] = {}
        for pod, target in targets.items():
            body = bodies.get(target)
            info = None if body is None else parse_json_object(body)
            loaded[pod] = 0 if info is None else loaded_bytes(info)
            told = _told(info, before.get(pod), now_s)
            if told is not None:
                self._told[pod] = told
        self._note_loads(loaded, now_s)
        self._publish(asked)

    def _note_loads(self, loaded: Mapping[str, int], now_s: float) -> None:
        """Note how much each worker has loaded, for the deadline of a rollout. It wakes nobody."""
        for key, pods in self._cache.pods_by_deployment().items():
            groups: dict[WorkersKey, list[PodLoad]] = {}
            for pod in pods:
                if pool_of(pod):
                    group = groups.setdefault((pool_of(pod), labels_of(pod).get(LABEL_REVISION, "")), [])
                    group.append(PodLoad(is_ready(pod), loaded.get(identity_of(pod), 0)))
            resource = self._cache.get(DISAGG_DEPLOYMENT, key)
            if resource is not None:
                self._live.of(key, uid_of(resource)).loading.look(groups, now_s)

    def _publish(self, asked: dict[Key, list[Obj]]) -> None:
        keys = self._cache.keys()
        for key in keys:
            resource = self._cache.get(DISAGG_DEPLOYMENT, key)
            if resource is None:
                continue
            entry = self._live.of(key, uid_of(resource))
            found = {
                name_of(pod): told.problem
                for pod in asked.get(key, [])
                if (told := self._told.get(identity_of(pod))) is not None
            }
            if found != entry.told:
                entry.told = found
                self._wake(key)

    async def _bearer(self, key: Key) -> str | None:
        resource = self._cache.get(DISAGG_DEPLOYMENT, key)
        if resource is None:
            return None
        entry = self._live.of(key, uid_of(resource))
        if entry.bearer is None:
            entry.bearer = await self._bearer_of(key)
        return entry.bearer


def _can_answer(pod: Obj) -> bool:
    running = (pod.get("status") or {}).get("phase") == "Running"
    return running and bool(address_of(pod)) and not is_ready(pod) and not pod["metadata"].get("deletionTimestamp")


def _told(info: Mapping[str, Any] | None, before: _Told | None, now_s: float) -> _Told | None:
    """Return what a worker says now, or what it said before if it does not answer."""
    if info is None:
        return before if before is not None and now_s - before.at_s <= _HOLDS_S else None
    problem = parse_problem(info.get(PROBLEM))
    return None if problem is None else _Told(problem, now_s)
