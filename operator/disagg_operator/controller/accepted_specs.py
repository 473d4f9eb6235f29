"""The spec of each resource as it was accepted last, and the generation that it had then.

It decides what a refusal may harm: what has not been written since then is not refused. Status can
be lost, in a restore or by whoever may write it, so the spec is kept in a ConfigMap that the
resource owns, with a seal: who may write ConfigMaps there decides nothing.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from typing import Protocol

from disagg_operator.autoscaling.records.state_store import decode, encode
from disagg_operator.controller.children import Children, is_orphan, owners_of
from disagg_operator.controller.rehearsal import blaming
from disagg_operator.controller.spec_seal import SpecSeal
from disagg_operator.kube.client import Kube
from disagg_operator.kube.resources import CONFIG_MAP, DEPLOYMENT, DISAGG_DEPLOYMENT, name_of, owned_by, uid_of
from disagg_operator.vocabulary import FIELD_MANAGER, Key, Obj
from disagg_wire.labels import LABEL_COMPONENT

log = logging.getLogger(__name__)

_FIELD, _GENERATION, _SEAL = "spec", "generation", "seal"


class AcceptedSpecs(Protocol):
    """The store of the last accepted specs. Every method raises KubeError."""

    async def last(self, resource: Obj, children: Children) -> Obj | None:
        """Return the spec of exactly this resource that was accepted last, or None."""

    async def generation(self, resource: Obj, spec: Obj) -> int:
        """Return the generation of a resource in which it got a spec that is accepted."""

    async def keep(self, resource: Obj, spec: Obj, kube: Kube) -> None:
        """Keep a spec as the last accepted one; do nothing if it is. Raises Refused.

        `kube` is the door through which the run writes.
        """

    async def restore(self, resource: Obj, kube: Kube) -> None:
        """Write what is kept once more if it was found to be lost. Raises Refused."""

    def begin(self, resource: Obj) -> None:
        """Note that no spec of a new resource has been accepted yet."""

    def forget(self, key: Key) -> None:
        """Forget a resource that is gone."""


def config_map_name(name: str) -> str:
    """Return the name of the ConfigMap of a resource."""
    return f"{name}-accepted-spec"


class SpecsInConfigMaps:
    """The implementation of AcceptedSpecs with one ConfigMap a resource."""

    def __init__(self, kube: Kube, seal: SpecSeal | None = None) -> None:
        self._kube = kube
        self._seal = seal
        self._known: dict[Key, tuple[str, Obj | None, int | None]] = {}
        self._lost: set[Key] = set()

    async def last(self, resource: Obj, children: Children) -> Obj | None:
        """Return the spec that was kept, or what an earlier release accepted, or None.

        Earlier releases kept no specs. What they had accepted is told by status; where that is
        lost too, by the pods' workloads.
        """
        return (await self._load(resource))[0] or _inferred(resource, children)

    async def generation(self, resource: Obj, spec: Obj) -> int:
        """Return the generation of the kept spec, or the present one for any other."""
        kept, generation = await self._load(resource)
        return generation if kept == spec and generation is not None else _generation(resource)

    async def keep(self, resource: Obj, spec: Obj, kube: Kube) -> None:
        """Keep a spec as the last accepted one. It is written only if it has changed.

        Raises KubeError, and Refused if admission control says no.
        """
        if (await self._load(resource))[0] == spec:
            await self.restore(resource, kube)
        else:
            await self._write(resource, spec, _generation(resource), kube)

    async def restore(self, resource: Obj, kube: Kube) -> None:
        """Write what is kept once more if it was found to be lost.

        Raises KubeError, and Refused if admission control says no.
        """
        uid, spec, generation = self._known.get(_key(resource), ("", None, None))
        if _key(resource) in self._lost and uid == uid_of(resource) and spec is not None:
            await self._write(resource, spec, generation, kube)

    async def is_lost(self, key: Key) -> bool:
        """Read the ConfigMap of a resource, and return whether it has to be written once more.

        That is the case if somebody has deleted or edited it. Raises KubeError.
        """
        uid, spec, generation = self._known.get(key, ("", None, None))
        if spec is None:
            return False
        found = await self._kube.get(CONFIG_MAP, key[0], config_map_name(key[1]))
        if self._known.get(key) != (uid, spec, generation):
            return False  # it has been written meanwhile
        data = {} if found is None or not owned_by(found, frozenset({uid})) else found.get("data") or {}
        number = "" if generation is None else str(generation)
        same = decode(str(data.get(_FIELD, ""))) == spec and data.get(_GENERATION, "") == number
        if same and await self._is_sealed(uid, data):
            self._lost.discard(key)
        else:
            self._lost.add(key)
        return key in self._lost

    async def _write(self, resource: Obj, spec: Obj, generation: int | None, kube: Kube) -> None:
        meta = resource["metadata"]
        owner = {
            "apiVersion": DISAGG_DEPLOYMENT.api_version, "kind": DISAGG_DEPLOYMENT.kind, "name": meta["name"],
            "uid": uid_of(resource), "controller": True, "blockOwnerDeletion": True,
        }  # fmt: skip
        labels = {"app.kubernetes.io/managed-by": FIELD_MANAGER, LABEL_COMPONENT: "shared"}
        data = {_FIELD: encode(spec), **({} if generation is None else {_GENERATION: str(generation)})}
        if (seal := await self._seal_on(uid_of(resource), data)) is not None:
            data[_SEAL] = seal
        obj = {
            "apiVersion": CONFIG_MAP.api_version, "kind": CONFIG_MAP.kind,
            "metadata": {
                "name": config_map_name(meta["name"]), "namespace": meta["namespace"], "labels": labels,
                "ownerReferences": [owner],
            },
            "data": data,
        }  # fmt: skip
        with blaming(spec, obj):
            await kube.apply(obj)
        self._known[_key(resource)] = (uid_of(resource), spec, generation)
        self._lost.discard(_key(resource))

    async def _load(self, resource: Obj) -> tuple[Obj | None, int | None]:
        key, uid = _key(resource), uid_of(resource)
        known = self._known.get(key)
        if known is not None and known[0] == uid:
            return known[1:]
        found = await self._kube.get(CONFIG_MAP, key[0], config_map_name(key[1]))
        if found is None or not owned_by(found, frozenset({uid})):
            return None, None
        data = found.get("data") or {}
        if not await self._is_sealed(uid, data):
            log.warning("%s/%s: the ConfigMap of the accepted spec was written by somebody else", *key)
            return None, None
        spec, number = decode(str(data.get(_FIELD, ""))), str(data.get(_GENERATION, ""))
        generation = int(number) if number.isdecimal() else None
        if spec is not None:
            self._known[key] = (uid, spec, generation)
        return spec, generation

    async def _seal_on(self, uid: str, data: Mapping[str, str]) -> str | None:
        return None if self._seal is None else await self._seal.of(uid, data.get(_FIELD, ""), data.get(_GENERATION, ""))

    async def _is_sealed(self, uid: str, data: Mapping[str, str]) -> bool:
        """Return whether an operator has written what is kept of a resource."""
        wanted = await self._seal_on(uid, data)
        return wanted is None or hmac.compare_digest(wanted.encode(), str(data.get(_SEAL, "")).encode())

    def begin(self, resource: Obj) -> None:
        """Note that no spec of a new resource has been accepted yet."""
        known = self._known.get(_key(resource))
        if known is None or known[0] != uid_of(resource):
            self._known[_key(resource)] = (uid_of(resource), None, None)

    def forget(self, key: Key) -> None:
        """Forget a resource that is gone. The garbage collector deletes its ConfigMap."""
        self._known.pop(key, None)
        self._lost.discard(key)

    def forget_all(self) -> None:
        """Forget what is known: another operator may have kept other specs since."""
        self._known.clear()
        self._lost.clear()


def _key(resource: Obj) -> Key:
    return str(resource["metadata"]["namespace"]), str(resource["metadata"]["name"])


def _generation(resource: Obj) -> int:
    return int(resource["metadata"].get("generation") or 0)


def _inferred(resource: Obj, children: Children) -> Obj | None:
    """Return the present spec if an earlier release had accepted it, or None."""
    status = resource.get("status") or {}
    for condition in status.get("conditions") or []:
        if condition.get("type") == "Accepted":
            current = status.get("observedGeneration") == resource["metadata"].get("generation")
            return resource["spec"] if current and condition.get("status") == "True" else None
    # Those of a predecessor of the same name tell nothing.
    owners, name = owners_of(resource, children), name_of(resource)
    deployments = [obj for (kind, _), obj in children.objects.items() if kind == DEPLOYMENT.kind]
    runs = any(owned_by(obj, owners) or is_orphan(obj, name) for obj in deployments)
    return resource["spec"] if runs else None
