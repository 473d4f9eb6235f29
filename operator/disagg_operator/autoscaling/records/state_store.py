"""The store of policy states: a ConfigMap of each resource, owned by it.

The state is not part of status, because twenty kilobytes that change all the time would be sent to
everybody who watches the resource. It is written at most once a minute, and when the operator
stops. A lost state costs the time to learn it again, so a failure is only logged.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from typing import Any

from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import CONFIG_MAP, DISAGG_DEPLOYMENT, DISAGG_SCALER, Resource
from disagg_operator.vocabulary import FIELD_MANAGER, Key, Obj
from disagg_wire.labels import LABEL_COMPONENT

log = logging.getLogger(__name__)

_FIELD = "state"
# A ConfigMap holds 1 MiB; a state compresses to about ten kilobytes.
MAX_BYTES = 256 * 1024


# The ending of the ConfigMap's name for each kind, since both kinds may have resources of one name.
_ENDINGS = {DISAGG_DEPLOYMENT: "scaling-state", DISAGG_SCALER: "scaler-state"}


def config_map_name(name: str, owner: Resource = DISAGG_DEPLOYMENT) -> str:
    """Return the name of the ConfigMap of a resource."""
    return f"{name}-{_ENDINGS[owner]}"


def encode(content: dict[str, Any]) -> str:
    """Return the content as compressed JSON in base64."""
    return base64.b64encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 6)).decode()


def decode(text: str) -> dict[str, Any] | None:
    """Return the content that `encode` was given.

    Returns None for anything else, and for content that would exceed the bound when decompressed.
    """
    try:
        stream = zlib.decompressobj()
        content = json.loads(stream.decompress(base64.b64decode(text, validate=True), 64 * MAX_BYTES))
    except (ValueError, zlib.error, RecursionError):
        return None
    return content if isinstance(content, dict) else None


class StateStore:
    """Loads and saves one ConfigMap for each resource of a kind."""

    def __init__(self, kube: Kube, owner: Resource = DISAGG_DEPLOYMENT) -> None:
        self._kube = kube
        self._owner = owner

    async def load(self, key: Key, uid: str) -> dict[str, Any] | None:
        """Return the state of exactly this resource, or None.

        Raises KubeError if it cannot be read now.
        """
        found = await self._kube.get(CONFIG_MAP, key[0], config_map_name(key[1], self._owner))
        owners = [] if found is None else found["metadata"].get("ownerReferences") or []
        if found is None or uid not in {str(o.get("uid")) for o in owners}:
            return None  # it belongs to an earlier resource of this name, or to another owner
        return decode(str((found.get("data") or {}).get(_FIELD, "")))

    async def save(self, key: Key, uid: str, content: dict[str, Any]) -> bool:
        """Save the state of a resource, and return whether it was written."""
        text = encode(content)
        if len(text) > MAX_BYTES:
            log.warning("%s/%s: the scaling state has %d bytes; not kept", *key, len(text))
            return False
        try:
            await self._kube.apply(_object(self._owner, key, uid, text))
        except KubeError as error:
            log.warning("%s/%s: the scaling state was not kept: %s", *key, error)
            return False
        return True


def _object(kind: Resource, key: Key, uid: str, text: str) -> Obj:
    owner = {"apiVersion": kind.api_version, "kind": kind.kind, "name": key[1], "uid": uid}
    labels = {"app.kubernetes.io/managed-by": FIELD_MANAGER, LABEL_COMPONENT: "scaling-state"}
    name = config_map_name(key[1], kind)
    meta = {"name": name, "namespace": key[0], "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {_FIELD: text}}
