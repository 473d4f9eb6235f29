"""PURE: Decides with which pins a deployment is rendered, and which deployments may move theirs.

A deployment keeps its pins until its annotation UPDATE_RUNTIME gets another value, or until the
operator, if it is configured to, moves the pins of some deployments at a time. Pins that change no
pod move by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from disagg_operator.api import DisaggDeployment
from disagg_operator.desired import pins
from disagg_operator.desired.facts import Images
from disagg_operator.desired.names import pool_name
from disagg_operator.desired.pins import RUNTIME_ANNOTATION, Pins
from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_POOL, annotations_of, labels_of
from disagg_operator.vocabulary import UPDATE_RUNTIME, Key, Obj
from disagg_wire.labels import LABEL_COMPONENT, LABEL_DEPLOYMENT, LABEL_POOL, ROUTER
from disagg_wire.roles import ROLES

Objects = Mapping[tuple[str, str], Obj]


@dataclass(frozen=True, slots=True)
class ChosenRuntime:
    """What a deployment is rendered with."""

    pins: Pins
    update: str = ""
    """What an update would change, if one is available."""
    otherwise: ChosenRuntime | None = None
    """What it is rendered with if the API server refuses its pods with pins that move now."""
    retry_s: float | None = None
    """When to try again what the API server has refused."""
    refused: bool = False
    """Whether the API server has refused the pods with other pins."""

    def unmoved(self, words: str, retry_s: float | None) -> ChosenRuntime | None:
        """Return the pins as they were, because the API server refuses the others, or None.

        `words` are those of the API server.
        """
        if (stays := self.otherwise) is None:
            return None
        return replace(stays, update=f"{stays.update} (refused: {words})", retry_s=retry_s, refused=True)


class RuntimeUpdates:
    """The deployments whose pins the operator moves by itself, `most` of them at a time.

    `wake` is called with the keys of those that may be next.
    """

    def __init__(self, most: int, wake: Callable[[Key], None]) -> None:
        self._most = most
        self._wake = wake
        self._moving: set[Key] = set()
        self._waiting: dict[Key, None] = {}

    def begin(self, pools: Iterable[Obj]) -> None:
        """Begin with what the DisaggPools of the cluster tell about moves in progress."""
        self._waiting.clear()
        self._moving = {
            (str(pool["metadata"].get("namespace", "")), labels_of(pool).get(LABEL_DEPLOYMENT, ""))
            for pool in pools
            if (kept := pins.from_text(annotations_of(pool).get(RUNTIME_ANNOTATION, ""), Images())) and kept.moving
        }

    def may_begin(self, key: Key) -> bool:
        """Return whether the pins of a deployment may move now, and count it if so."""
        if key not in self._moving and len(self._moving) >= self._most:
            return False
        self._moving.add(key)
        return True

    def note(self, key: Key, runtime: ChosenRuntime | None) -> None:
        """Take in the present pins of a deployment, or None if it is gone.

        A move that the API server refuses is not over: what stops it may stop the next ones too.
        """
        if runtime is not None and runtime.refused:
            return
        if runtime is not None and runtime.update and self._most:
            self._waiting[key] = None
        else:
            self._waiting.pop(key, None)
        if runtime is None or not runtime.pins.moving:
            free = key in self._moving
            self._moving.discard(key)
            if free:
                self._wake_next()

    def _wake_next(self) -> None:
        """Wake as many as may move at a time. Those that can't now go to the end of the line."""
        for key in list(self._waiting)[: self._most]:
            self._waiting[key] = self._waiting.pop(key)
            self._wake(key)


def choose(
    resource: Obj, dd: DisaggDeployment, objects: Objects, release: Images, may_begin: Callable[[], bool]
) -> ChosenRuntime:
    """Return the pins of a deployment. `release` are those of this operator.

    `objects` are its children, and `may_begin` says whether the operator may move its pins now.
    """
    current = pins.current_for(dd, release)
    asked = annotations_of(resource).get(UPDATE_RUNTIME, "")
    kept = _kept(dd, objects, current)
    if kept is None:
        found = pins.found_in(dd, *_workloads(objects), current)
        # Whoever asked did so before the pins were lost.
        kept = Pins(current if found is None else found, asked)
    kept = replace(kept, images=pins.completed(kept.images, current))
    if kept.moving and _rolled_out(resource, dd, kept.images):
        kept = replace(kept, moving=False)
    if kept.images == current or pins.same_pods(dd, kept.images, current):
        return ChosenRuntime(replace(kept, images=current, asked=asked))
    stays = ChosenRuntime(kept, _changes(dd, kept.images, current))
    if asked not in ("", kept.asked):
        return ChosenRuntime(replace(kept, images=current, asked=asked), otherwise=stays)
    if _rolled_out(resource, dd, kept.images) and may_begin():
        return ChosenRuntime(Pins(current, asked, moving=True), otherwise=stays)
    return stays


def _kept(dd: DisaggDeployment, objects: Objects, current: Images) -> Pins | None:
    """Return the pins that the pools carry. The first pool is written first, so it counts."""
    for role in ROLES:
        pool = objects.get((DISAGG_POOL.kind, pool_name(dd.metadata.name, role)))
        text = None if pool is None else annotations_of(pool).get(RUNTIME_ANNOTATION)
        if text is not None and (found := pins.from_text(text, current)) is not None:
            return found
    return None


def _workloads(objects: Objects) -> tuple[dict[str, list[Obj]], list[Obj]]:
    """Return the Deployments of each pool, and those of the routers."""
    found = [obj for (kind, _), obj in sorted(objects.items()) if kind == DEPLOYMENT.kind]
    workers = {role: [obj for obj in found if labels_of(obj).get(LABEL_POOL) == role] for role in ROLES}
    return workers, [obj for obj in found if labels_of(obj).get(LABEL_COMPONENT) == ROUTER]


def _rolled_out(resource: Obj, dd: DisaggDeployment, images: Images) -> bool:
    """Return whether all pods are there and rendered with these pins, by the stored status."""
    status = resource.get("status") or {}
    if status.get("observedGeneration") != resource["metadata"].get("generation"):
        return False
    reasons = {c.get("type"): c.get("reason") for c in status.get("conditions") or []}
    revision = status.get("revision") or {}
    wanted = pins.revision_under(dd, images)
    return reasons.get("Progressing") == "RolloutComplete" and revision.get("current") == wanted


def _changes(dd: DisaggDeployment, kept: Images, current: Images) -> str:
    pairs = {
        "renderer": (str(kept.renderer), str(current.renderer)),
        "worker": (kept.worker, current.worker),
        "router": (kept.router, current.router),
    }
    if (engine := dd.spec.engine.type) in current.engines:
        pairs["worker"] = (kept.engines[engine], current.engines[engine])
        pairs["adapter"] = (kept.adapter, current.adapter)
    return ", ".join(f"{what} {old} -> {new}" for what, (old, new) in pairs.items() if old != new)
