"""PURE: What is wrong with a resource, with the field to blame, and the value of that field."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

INVALID_SPEC = "InvalidSpec"
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
# The fields by which the items of a list are named in a path.
_KEYS = ("name", "mountPath", "containerPort")


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of a resource and why it can't be carried out."""

    path: str
    """The path in the resource, such as spec.prefill.podTemplate.spec.containers[main].env[A]."""
    message: str
    reason: str = INVALID_SPEC
    """The reason of the condition."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def value_at(obj: Any, path: str) -> Any:
    """Return the value of a field by its path, or None if there is none.

    An item of a list is named in brackets, by its key or its index.
    """
    for step in _STEP.finditer(path):
        name, item = step.groups()
        obj = _item(obj, item) if name is None else obj.get(name) if isinstance(obj, dict) else None
        if obj is None:
            return None
    return obj


def _item(held: Any, item: str) -> Any:
    if isinstance(held, dict):
        return held.get(item)
    if not isinstance(held, list):
        return None
    for entry in held:
        if isinstance(entry, dict) and any(str(entry[key]) == item for key in _KEYS if key in entry):
            return entry
    return held[int(item)] if item.isdigit() and int(item) < len(held) else None
