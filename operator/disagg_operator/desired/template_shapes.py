"""PURE: The parts of a podTemplate that are of another kind than what the operator generates there.

They can't be merged: a text, say, would take the place of a whole map.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from disagg_operator.desired.merge import KEYED


def shape_problems(base: Any, patch: Any, path: str, field: str = "") -> Iterator[tuple[str, str]]:
    """Yield the path and the reason of each part of a patch that is of another kind than the base.

    `field` is the name of the field that holds both. Null stands for a part that is left out.
    """
    if patch is None:
        return
    if isinstance(base, dict):
        if not isinstance(patch, dict):
            yield path, "must be a map"
            return
        for key in sorted(base.keys() & patch.keys()):
            yield from shape_problems(base[key], patch[key], f"{path}.{key}", key)
    elif isinstance(base, list):
        if not isinstance(patch, list):
            yield path, "must be a list"
        elif field in KEYED:
            yield from _item_problems(base, patch, path, KEYED[field])
    elif isinstance(patch, dict | list):
        yield path, "must be a single value"


def _item_problems(base: list[Any], patch: list[Any], path: str, key: str) -> Iterator[tuple[str, str]]:
    ours = {item[key]: item for item in base}
    for item in patch:
        name = item.get(key) if isinstance(item, dict) else None
        if isinstance(name, str) and name in ours:
            yield from shape_problems(ours[name], item, f"{path}[{name}]")
