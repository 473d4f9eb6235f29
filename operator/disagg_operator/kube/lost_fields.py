"""PURE: Finds the fields of a spec that somebody wrote and the API server does not return.

It drops fields that its CRD does not know, even those that are stored: a CRD that is older than a
resource makes another resource of it, of the same generation. Who wrote which field stays recorded.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from disagg_operator.vocabulary import Obj


def lost_fields(obj: Obj) -> list[str]:
    """Return the paths of the fields of an object's spec that are recorded and missing, sorted."""
    found: set[str] = set()
    for entry in obj["metadata"].get("managedFields") or []:
        fields = entry.get("fieldsV1") or {}
        if not entry.get("subresource") and "f:spec" in fields:
            found.update(_lost(fields["f:spec"], obj.get("spec"), "spec"))
    return sorted(found)


def _lost(fields: Any, value: Any, path: str) -> Iterator[str]:
    for name, below in fields.items() if isinstance(fields, dict) else ():
        kind, _, rest = name.partition(":")
        if kind == "f" and isinstance(value, dict):
            if rest not in value:
                yield f"{path}.{rest}"
            else:
                yield from _lost(below, value[rest], f"{path}.{rest}")
        elif kind == "k" and isinstance(value, list):
            keys: dict[str, Any] = json.loads(rest)
            for item in value:
                if isinstance(item, dict) and all(item.get(k) == v for k, v in keys.items()):
                    yield from _lost(below, item, f"{path}[{','.join(map(str, keys.values()))}]")
