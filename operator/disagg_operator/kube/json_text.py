"""PURE: Parses JSON of the API server, however deeply its objects are nested.

The API server stores free fields of a custom resource with thousands of levels. Python parses some
hundreds and raises RecursionError beyond, which would end a watch and with it the work for every
other resource. Here a part that is nested too deeply becomes null instead.
"""

from __future__ import annotations

import json
import re
from typing import Any

from disagg_operator.kube.resources import GROUP

# No object of Kubernetes comes near it: a pod has about 15 levels, and its managedFields 20.
MAX_DEPTH = 100
# Only these kinds have fields of any content. Objects, lists and watch events begin with their
# kind; further on, the names stand in the labels and owners of objects of other kinds, too.
_FREE = (f'"{GROUP}/', '"ControllerRevision')
_HEAD_CHARACTERS = 100
# Strings are skipped as a whole, so that a bracket inside of one does not count.
_TOKENS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]', re.DOTALL)


def loads(text: str) -> Any:
    """Return the value of a JSON text, without its parts below `MAX_DEPTH`. Raises ValueError."""
    try:
        value = json.loads(text)
    except RecursionError:
        return json.loads(flattened(text))
    head = text[:_HEAD_CHARACTERS]
    return shallow(value) if any(name in head for name in _FREE) else value


def flattened(text: str, depth: int = MAX_DEPTH) -> str:
    """Return a JSON text in which each map and list below a depth is null."""
    out: list[str] = []
    level, kept_to = 0, 0
    for token in _TOKENS.finditer(text):
        mark = token.group()
        if mark in "{[":
            level += 1
            if level == depth + 1:
                out.append(text[kept_to : token.start()])
        elif mark in "}]":
            level -= 1
            if level == depth:
                out.append("null")
                kept_to = token.end()
    return "".join(out) + text[kept_to:]


def shallow(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Remove the maps and lists below a depth from a parsed value, in place, and return it."""
    layer = [value]
    for _ in range(depth - 1):
        layer = [child for parent in layer for child in _children(parent)]
        if not layer:
            return value
    for parent in layer:
        for key, child in parent.items() if isinstance(parent, dict) else enumerate(parent):
            if isinstance(child, dict | list):
                parent[key] = None
    return value


def depth_of(value: Any, limit: int) -> int:
    """Return how many levels of maps and lists a value has; at most `limit` are counted."""
    layer, depth = [value] if isinstance(value, dict | list) else [], 0
    while layer and depth < limit:
        depth += 1
        layer = [child for parent in layer for child in _children(parent)]
    return depth


def _children(parent: Any) -> list[Any]:
    found = parent.values() if isinstance(parent, dict) else parent if isinstance(parent, list) else ()
    return [child for child in found if isinstance(child, dict | list)]
