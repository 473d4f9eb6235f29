"""The Prometheus of each resource, with the Secrets and ConfigMaps that the resource refers to.

The operator may get a Secret by name, but may neither list nor watch Secrets. Secrets are therefore
read again every minute, and at once if the server refuses the credentials: one that is created
late, changed or deleted needs no restart of anything. A server that does not answer in time is left
alone for a while, so that many such servers cannot delay the reading of all others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from disagg_operator.autoscaling.policy.history import Minute
from disagg_operator.autoscaling.signals.prometheus_access import (
    CREDENTIALS_UNAVAILABLE,
    METRICS_UNAVAILABLE,
    Access,
    PrometheusEndpoint,
    Ref,
    Unreadable,
    endpoint_of,
)
from disagg_operator.autoscaling.signals.prometheus_query import PrometheusDoor
from disagg_operator.autoscaling.signals.samples import Sample
from disagg_operator.kube.errors import Forbidden, KubeError
from disagg_operator.kube.resources import CONFIG_MAP, SECRET, Resource
from disagg_operator.vocabulary import Key, Obj

T = TypeVar("T")
READ_AGAIN_S = 60.0
SLOW_S, REST_S = 0.5, 15.0
_KINDS = {r.kind: r for r in (SECRET, CONFIG_MAP)}


class Reader(Protocol):
    """The part of `kube.Kube` that is needed here."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None: ...


@dataclass(frozen=True, slots=True)
class _Resolved:
    access: Access
    endpoint: PrometheusEndpoint
    at_s: float


@dataclass(frozen=True, slots=True)
class _Resting:
    access: Access
    words: str
    until_s: float


class PrometheusSource:
    """Reads the Prometheus servers of all deployments. `clock` is monotonic."""

    def __init__(self, kube: Reader, door: PrometheusDoor, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._door = door
        self._clock = clock
        self._resolved: dict[Key, _Resolved] = {}
        self._resting: dict[Key, _Resting] = {}

    async def read(self, key: Key, access: Access, now_s: float) -> dict[str, Sample]:
        """Return the result of PrometheusDoor.read for a resource. Raises Unreadable."""
        return await self._ask(key, access, lambda endpoint: self._door.read(endpoint, *key, now_s))

    async def matrix(self, key: Key, access: Access, query: str) -> list[Any]:
        """Return the result of PrometheusDoor.matrix for a resource. Raises Unreadable."""
        return await self._ask(key, access, lambda endpoint: self._door.matrix(endpoint, query))

    async def history(self, key: Key, access: Access, now_s: float) -> list[Minute]:
        """Return the result of PrometheusDoor.history for a resource.

        A history is a large answer: if it takes too long, `read` still asks the server. Raises
        Unreadable.
        """
        return await self._ask_now(key, access, lambda endpoint: self._door.history(endpoint, *key, now_s))

    def forget(self, key: Key) -> None:
        """Forget a resource that has been deleted, with its credentials."""
        self._resolved.pop(key, None)
        self._resting.pop(key, None)

    async def close(self) -> None:
        self._resolved.clear()
        await self._door.close()

    async def _ask(self, key: Key, access: Access, ask: Callable[[PrometheusEndpoint], Awaitable[T]]) -> T:
        resting, began_s = self._resting.get(key), self._clock()
        if resting is not None and resting.access == access and began_s < resting.until_s:
            raise Unreadable(resting.words)
        try:
            return await self._ask_now(key, access, ask)
        except Unreadable as error:
            now_s = self._clock()
            if now_s - began_s >= SLOW_S and not error.refused and error.reason == METRICS_UNAVAILABLE:
                self._resting[key] = _Resting(access, str(error), now_s + REST_S)
            raise

    async def _ask_now(self, key: Key, access: Access, ask: Callable[[PrometheusEndpoint], Awaitable[T]]) -> T:
        endpoint = await self._endpoint(key, access)
        try:
            return await ask(endpoint)
        except Unreadable as error:
            if not error.refused or not access.refs():
                raise
            self._resolved.pop(key, None)
            fresh = await self._endpoint(key, access)
            if fresh == endpoint:
                raise
        return await ask(fresh)

    async def _endpoint(self, key: Key, access: Access) -> PrometheusEndpoint:
        """Return the endpoint of a resource.

        If the API server does not answer, the endpoint is that of the last reading. Raises
        Unreadable.
        """
        known = self._resolved.get(key)
        if known is not None and known.access == access and self._clock() - known.at_s < READ_AGAIN_S:
            return known.endpoint
        self._resolved.pop(key, None)
        refs = {(ref.kind, ref.name): ref for ref in access.refs()}
        try:
            found = await asyncio.gather(*(self._get(key, ref) for ref in refs.values()))
        except KubeError:
            if known is None or known.access != access:
                raise Unreadable("the API server does not answer", CREDENTIALS_UNAVAILABLE) from None
            self._resolved[key] = known
            return known.endpoint
        endpoint = endpoint_of(access, dict(zip(refs, found, strict=True)))
        self._resolved[key] = _Resolved(access, endpoint, self._clock())
        return endpoint

    async def _get(self, key: Key, ref: Ref) -> Obj | None:
        """Return a referenced object, always from the resource's own namespace."""
        try:
            return await self._kube.get(_KINDS[ref.kind], key[0], ref.name)
        except Forbidden:
            raise Unreadable(
                f"{ref.field}: the operator may not read {ref.kind} {ref.name}", CREDENTIALS_UNAVAILABLE
            ) from None
