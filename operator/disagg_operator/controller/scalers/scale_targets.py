"""Reads the targets of DisaggScalers, of whatever kind they are, and their pods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from disagg_operator.api.disagg_scaler import ScaledPool, ScaleTarget
from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.errors import Forbidden
from disagg_operator.kube.resources import POD, Resource
from disagg_operator.vocabulary import Obj

TARGET_NOT_FOUND, NOT_SCALABLE, SELECTOR_MISSING = "TargetNotFound", "NotScalable", "SelectorMissing"
RIGHT_MISSING = "RightMissing"
_ASK_AGAIN_S = 600.0


class Unscalable(Exception):
    """Raised when a target cannot be scaled as it is; `reason` is that of the condition."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class FoundTarget:
    """A target as it is."""

    ref: ScaleTarget
    resource: Resource
    obj: Obj
    scale: Obj
    """Its Scale."""
    replicas: int
    """The replicas that it is set to."""
    pods: tuple[Obj, ...]
    """The pods that serve metrics, one for each replica."""


class TargetReader:
    """Reads targets, and remembers for ten minutes what API groups serve. `clock` is monotonic."""

    def __init__(self, kube: HttpKube, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._clock = clock
        self._kinds: dict[str, tuple[float, dict[str, str]]] = {}

    async def read(self, namespace: str, pool: ScaledPool) -> FoundTarget:
        """Return a target with its pods. Raises Unscalable, or KubeError if nobody answers."""
        ref = pool.scale_target_ref
        try:
            resource = await self._resource(ref)
            obj = await self._kube.get(resource, namespace, ref.name)
            scale = None if obj is None else await self._kube.scale_of(resource, namespace, ref.name)
            if obj is None or scale is None:
                raise Unscalable(TARGET_NOT_FOUND, f"{ref} does not exist")
            return await self._with_pods(namespace, pool, resource, obj, scale)
        except Forbidden as error:
            words = f"{ref}: {error}; the chart's value scaler.targets grants the right"
            raise Unscalable(RIGHT_MISSING, words) from None

    async def _with_pods(
        self, namespace: str, pool: ScaledPool, resource: Resource, obj: Obj, scale: Obj
    ) -> FoundTarget:
        own = pool.pod_selector
        selector = str((scale.get("status") or {}).get("selector") or "") if own is None else own.as_selector()
        if not selector:
            words = f"{pool.scale_target_ref} reports no selector of its pods: set podSelector"
            raise Unscalable(SELECTOR_MISSING, words)
        pods = await self._kube.list(POD, namespace, selector)
        replicas = int((scale.get("spec") or {}).get("replicas") or 0)
        return FoundTarget(pool.scale_target_ref, resource, obj, scale, replicas, tuple(pods))

    async def _resource(self, ref: ScaleTarget) -> Resource:
        """Return the kind of a target. Raises Unscalable if it has no /scale."""
        known = self._kinds.get(ref.api_version)
        if known is None or self._clock() - known[0] > _ASK_AGAIN_S or ref.kind not in known[1]:
            kinds = await self._kube.kinds_of(ref.api_version)
            names = {str(kind.get("name")) for kind in kinds}
            plurals = {str(k.get("kind")): str(k.get("name")) for k in kinds if f"{k.get('name')}/scale" in names}
            known = self._kinds[ref.api_version] = (self._clock(), plurals)
        plural = known[1].get(ref.kind)
        if plural is None:
            words = f"{ref.kind} of {ref.api_version} has no /scale here, or is not installed"
            raise Unscalable(NOT_SCALABLE, words)
        return Resource(ref.api_version, ref.kind, plural)
