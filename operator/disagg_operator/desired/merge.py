"""PURE: The merge of spec.*.podTemplate into a generated pod template, like a strategic merge."""

from __future__ import annotations

from typing import Any

# The lists that are merged by a key instead of being replaced.
KEYED = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "name",
    "resourceClaims": "name",
    "claims": "name",
}
# The lists whose items choose one source of several: an item that merges the old and the new one
# would have two sources, so it is replaced as a whole.
_WHOLE = {"env", "volumes", "resourceClaims"}


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """Return `base` with `patch` merged into it; `field` is the name of the field that holds them.

    Maps are merged by key, known lists by the name of their items; other lists are replaced. Null
    removes a key of a map. In a conflict `patch` wins.
    """
    if isinstance(base, dict) and isinstance(patch, dict):
        out = {k: v for k, v in base.items() if not (k in patch and patch[k] is None)}
        for key, value in patch.items():
            if value is not None:
                out[key] = merge(out[key], value, key) if key in out else value
        return out
    if isinstance(base, list) and isinstance(patch, list) and field in KEYED:
        return _merge_keyed(base, patch, KEYED[field], whole=field in _WHOLE)
    return patch


def _merge_keyed(base: list[Any], patch: list[Any], key: str, *, whole: bool) -> list[Any]:
    out = list(base)
    at = {item[key]: i for i, item in enumerate(base) if isinstance(item, dict) and isinstance(item.get(key), str)}
    for item in patch:
        name = item.get(key) if isinstance(item, dict) else None
        if isinstance(name, str) and name in at:
            out[at[name]] = item if whole else merge(out[at[name]], item)
        else:
            out.append(item)
    return out
