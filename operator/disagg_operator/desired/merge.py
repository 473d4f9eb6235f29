"""PURE: spec.*.podTemplate over the generated pod template, in the spirit of a strategic merge."""

from __future__ import annotations

from typing import Any

# Lists that are merged by a key instead of being replaced.
_KEYED = {
    "containers": "name",
    "initContainers": "name",
    "volumes": "name",
    "env": "name",
    "volumeMounts": "mountPath",
    "ports": "name",
}
# Items that are a choice of one source: half of the old and half of the new one would be two.
_WHOLE = {"env", "volumes"}


def merge(base: Any, patch: Any, field: str = "") -> Any:
    """`patch` wins; maps merge by key, known lists by their item's name, other lists are replaced;
    null removes a map's key.
    """
    if isinstance(base, dict) and isinstance(patch, dict):
        out = {k: v for k, v in base.items() if not (k in patch and patch[k] is None)}
        for key, value in patch.items():
            if value is not None:
                out[key] = merge(out[key], value, key) if key in out else value
        return out
    if isinstance(base, list) and isinstance(patch, list) and field in _KEYED:
        return _merge_keyed(base, patch, _KEYED[field], whole=field in _WHOLE)
    return patch


def _merge_keyed(base: list[Any], patch: list[Any], key: str, *, whole: bool) -> list[Any]:
    out = list(base)
    at = {item[key]: i for i, item in enumerate(base) if isinstance(item, dict) and key in item}
    for item in patch:
        name = item.get(key) if isinstance(item, dict) else None
        if name in at:
            out[at[name]] = item if whole else merge(out[at[name]], item)
        else:
            out.append(item)
    return out
