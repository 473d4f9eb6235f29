"""PURE: The revisions of a deployment as ControllerRevisions: history, undo and what failed.

A revision is what the pods of both pools are made from. It holds the part of the spec that makes
them, so that it can be declared again, and the names of both pools' revisions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from disagg_operator.kube.resources import CONTROLLER_REVISION, annotations_of, name_of
from disagg_operator.rollout.canary_record import CANARY_ANNOTATION, PROMOTED, CanaryRecord, read_record
from disagg_operator.vocabulary import Obj
from disagg_wire.roles import DECODE, PREFILL, ROLES

# The generation of the resource whose rollout to this revision was given up.
FAILED_ANNOTATION = "disagg.dev/failed-generation"
# The parts of a spec that make the workers' pods.
_PARTS = ("model", "engine", "kvTransfer", *ROLES)
# The parts of a pool that say how many workers there are, and how they are replaced.
_SIZES = ("replicas", "autoscaling", "maxSurge", "maxUnavailable")


@dataclass(frozen=True, slots=True)
class KnownRevision:
    """A revision that was rolled out."""

    name: str
    """The revisions of both pools as one name, as in `status.revision`."""
    number: int
    """The highest is the one that was declared last."""
    prefill: str
    decode: str
    failed_generation: int | None
    created: str
    spec: Mapping[str, Any]
    """The parts of the spec that make its pods."""
    canary: CanaryRecord | None = None
    """What is written down of its canary."""

    @property
    def pair(self) -> tuple[str, str]:
        return self.prefill, self.decode

    @property
    def given_up(self) -> bool:
        """Whether its canary has failed, or goes on, or was left before its end."""
        return self.canary is not None and self.canary.verdict != PROMOTED

    @property
    def model_name(self) -> str:
        """The name under which its workers serve the model."""
        model = self.spec.get("model") or {}
        return str(model.get("name") or str(model.get("uri", "")).rstrip("/").rsplit("/", 1)[-1])

    def of(self, role: str) -> str:
        """Return the revision of a role."""
        return self.prefill if role == PREFILL else self.decode


def pair_name(prefill: str, decode: str) -> str:
    """Return one name for the revisions of both pools."""
    return "-".join(dict.fromkeys((prefill, decode)))


def object_name(deployment: str, revision: str) -> str:
    """Return the name of the ControllerRevision of a revision."""
    return f"{deployment}-{revision}"


def known_revisions(objects: Iterable[Obj]) -> list[KnownRevision]:
    """Return the revisions in the order of their numbers."""
    return sorted(filter(None, map(_known, objects)), key=lambda r: r.number)


def _known(obj: Obj) -> KnownRevision | None:
    data = obj.get("data")
    if obj.get("kind") != CONTROLLER_REVISION.kind or not isinstance(data, dict):
        return None
    prefill, decode, spec = (data.get(key) for key in (PREFILL, DECODE, "spec"))
    if not isinstance(prefill, str) or not isinstance(decode, str) or not isinstance(spec, dict):
        return None
    failed = annotations_of(obj).get(FAILED_ANNOTATION, "")
    return KnownRevision(
        name=pair_name(prefill, decode),
        number=int(obj.get("revision") or 0),
        prefill=prefill,
        decode=decode,
        failed_generation=int(failed) if failed.isdigit() else None,
        created=str(obj["metadata"].get("creationTimestamp") or ""),
        spec=spec,
        canary=read_record(annotations_of(obj).get(CANARY_ANNOTATION)),
    )


def revision_object(metadata: Obj, pair: tuple[str, str], spec: Mapping[str, Any], number: int) -> Obj:
    """Return the ControllerRevision of a revision."""
    return {
        "apiVersion": CONTROLLER_REVISION.api_version,
        "kind": CONTROLLER_REVISION.kind,
        "metadata": metadata,
        "data": {"spec": pods_part(spec), PREFILL: pair[0], DECODE: pair[1]},
        "revision": number,
    }


def pods_part(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a spec that makes the workers' pods."""
    part = {key: spec[key] for key in _PARTS if key in spec}
    for role in ROLES:
        part[role] = {key: value for key, value in (part.get(role) or {}).items() if key not in _SIZES}
    return part


def undo_patch(spec: Mapping[str, Any], to: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON merge patch of a spec with which its pods are those of `to` again."""
    now = pods_part(spec)
    patch = {key: _difference(now.get(key), to.get(key)) for key in _PARTS if now.get(key) != to.get(key)}
    return {"spec": patch} if patch else {}


def _difference(now: Any, then: Any) -> Any:
    if not isinstance(now, dict) or not isinstance(then, dict):
        return then
    keys = [key for key in {**now, **then} if now.get(key) != then.get(key)]
    return {key: _difference(now.get(key), then.get(key)) for key in keys}


def changes(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the paths of the fields in which two specs differ, sorted."""
    out = []
    for key in sorted({*before, *after}):
        old, new = before.get(key), after.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            out += changes(old, new, f"{prefix}{key}.")
        elif old != new:
            out.append(f"{prefix}{key}")
    return out


def superfluous(known: Iterable[KnownRevision], live: Iterable[str], limit: int) -> list[str]:
    """Return the names of the oldest revisions beyond `limit` that no workload has."""
    names = set(live)
    idle = [r.name for r in sorted(known, key=lambda r: -r.number) if r.name not in names]
    return idle[limit:]


def by_name(objects: Iterable[Obj], deployment: str, revision: str) -> Obj | None:
    """Return the ControllerRevision of a revision, or None."""
    wanted = object_name(deployment, revision)
    return next((o for o in objects if o.get("kind") == CONTROLLER_REVISION.kind and name_of(o) == wanted), None)
