"""Door: where a policy's state outlives the operator: the ConfigMap NAME-scaling-state, owned by
the resource.

Not status: twenty kilobytes that change all the time would be sent to everybody who watches the
resource. Written once a minute at most, and when the operator stops. A state that is lost costs
what it takes to learn it again, so a failure is logged and nothing more.
"""

from __future__ import annotations

import base64
import json
import logging
import zlib
from typing import Any

from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import CONFIG_MAP, DISAGG_DEPLOYMENT
from disagg_operator.vocabulary import FIELD_MANAGER, Key, Obj
from disagg_wire.labels import LABEL_COMPONENT

log = logging.getLogger(__name__)

_FIELD = "state"
# A ConfigMap holds 1 MiB; ours compresses to some ten kilobytes.
MAX_BYTES = 256 * 1024


def config_map_name(name: str) -> str:
    return f"{name}-scaling-state"


def encode(content: dict[str, Any]) -> str:
    """Deflated JSON in base64."""
    return base64.b64encode(zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 6)).decode()


def decode(text: str) -> dict[str, Any] | None:
    """What `encode` made; None for anything else, and for what would grow beyond all measure."""
    try:
        stream = zlib.decompressobj()
        content = json.loads(stream.decompress(base64.b64decode(text, validate=True), 64 * MAX_BYTES))
    except (ValueError, zlib.error, RecursionError):
        return None
    return content if isinstance(content, dict) else None


class StateStore:
    """One ConfigMap a resource."""

    def __init__(self, kube: Kube) -> None:
        self._kube = kube

    async def load(self, key: Key, uid: str) -> dict[str, Any] | None:
        """The state of this very resource, or None. Raises KubeError when it can't be known now."""
        found = await self._kube.get(CONFIG_MAP, key[0], config_map_name(key[1]))
        owners = [] if found is None else found["metadata"].get("ownerReferences") or []
        if found is None or uid not in {str(o.get("uid")) for o in owners}:
            return None  # of a resource of this name that is gone, or somebody else's
        return decode(str((found.get("data") or {}).get(_FIELD, "")))

    async def save(self, key: Key, uid: str, content: dict[str, Any]) -> bool:
        """Whether it was written."""
        text = encode(content)
        if len(text) > MAX_BYTES:
            log.warning("%s/%s: the scaling state has %d bytes; not kept", *key, len(text))
            return False
        try:
            await self._kube.apply(_object(key, uid, text))
        except KubeError as error:
            log.warning("%s/%s: the scaling state was not kept: %s", *key, error)
            return False
        return True


def _object(key: Key, uid: str, text: str) -> Obj:
    owner = {"apiVersion": DISAGG_DEPLOYMENT.api_version, "kind": DISAGG_DEPLOYMENT.kind, "name": key[1], "uid": uid}
    labels = {"app.kubernetes.io/managed-by": FIELD_MANAGER, LABEL_COMPONENT: "scaling-state"}
    meta = {"name": config_map_name(key[1]), "namespace": key[0], "labels": labels, "ownerReferences": [owner]}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta, "data": {_FIELD: text}}
