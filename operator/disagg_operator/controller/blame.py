"""PURE: The field of a resource that is to blame for what the API server says of a rendered object.

The API server speaks of the object that it was sent, such as spec.template.spec.containers[0].env.
The user wrote a podTemplate, or another field from which that part was made.
"""

from __future__ import annotations

import re
from typing import Any

from disagg_operator.kube.resources import name_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_COMPONENT, LABEL_POOL, ROUTER
from disagg_wire.roles import ROLES

# A step of a path: .name, [0], [key] or [name="main",protocol="TCP"].
_STEP = re.compile(r"\.?([^.\[\]]+)|\[([^\]]*)\]")
_KEY = re.compile(r'\w+="?([^",]*)"?')
# The keys of the lists that server-side apply merges by a key.
_KEYS = ("mountPath", "name", "devicePath", "containerPort", "ip", "topologyKey", "port")
_LISTS = ("containers", "initContainers", "volumes", "env", "volumeMounts", "ports", "tolerations", "imagePullSecrets")
OPERATOR_CONTAINERS = ("main", "adapter", "prepare")
_TEMPLATE = ("spec", "template")
# The field from which a part of the container `main` is made, unless a podTemplate patches it.
_MADE_FROM = {
    "image": "spec.engine.image",
    "env": "spec.engine.env",
    "command": "spec.engine",
    "args": "spec.engine.args",
}
_ROUTER_SERVICE = "spec.router.service"
_ELSEWHERE = {
    "NetworkAttachmentDefinition": "spec.kvTransfer.network.attachment",
    "NetworkPolicy": "spec.security.networkPolicy",
}


def field_to_blame(spec: Obj, rendered: Obj, path: str = "") -> str:
    """Return the path in a resource for a path in one of its rendered objects.

    `spec` is that of the resource. Without a path, the part that made the object is returned.
    """
    labels = rendered["metadata"].get("labels") or {}
    role = str(labels.get(LABEL_POOL) or labels.get(LABEL_COMPONENT) or "")
    if rendered["kind"] != "Deployment":
        return _of_another(str(rendered["kind"]), role)
    steps = _named(rendered, _steps(path))
    if tuple(steps[:2]) != _TEMPLATE:
        steps = [*_TEMPLATE]
    inner = steps[2:]
    # The API server leaves the step `metadata` out.
    if inner[:1] in (["labels"], ["annotations"]):
        inner = ["metadata", *inner]
    patch = (spec.get(role) or {}).get("podTemplate")
    if patch and (not inner or _patches(patch, inner)):
        return _joined(f"spec.{role}.podTemplate", inner)
    return _source(role, inner)


def _of_another(kind: str, role: str) -> str:
    """Return the field from which an object that is no Deployment is made."""
    if kind in _ELSEWHERE:
        return _ELSEWHERE[kind]
    if role not in (*ROLES, ROUTER):
        return "spec"
    return _ROUTER_SERVICE if (kind, role) == ("Service", ROUTER) else f"spec.{role}"


def _source(role: str, inner: list[str]) -> str:
    """Return the field from which an unpatched part of a pod is made."""
    main = inner[:3] == ["spec", "containers", "main"] and len(inner) > 3
    if role == "router":
        return f"spec.router.{inner[3]}" if main and inner[3] in ("image", "resources") else "spec.router"
    if main and inner[3] == "resources":
        return _joined(f"spec.{role}.resources", inner[4:])
    return _MADE_FROM.get(inner[3], f"spec.{role}") if main else f"spec.{role}"


def _patches(patch: Any, inner: list[str]) -> bool:
    """Return whether a part of the pod comes from a podTemplate.

    It need not be set there: a field that is missing in a container of the user's is theirs too.
    """
    needed = min(_depth(inner), len(inner))
    for step in inner[:needed]:
        patch = patch.get(step) if isinstance(patch, dict) else _item(patch, step) if isinstance(patch, list) else None
        if patch is None:
            return False
    return True


def _depth(inner: list[str]) -> int:
    """Return how many steps of a path decide who has set the part."""
    if inner[1:2] not in (["containers"], ["initContainers"]):
        return 3 if inner[1:2] and inner[1] in _LISTS else 2
    if inner[2:3] and inner[2] not in OPERATOR_CONTAINERS:
        return 3
    return 5 if inner[3:4] and inner[3] in _LISTS else 4


def _steps(path: str) -> list[str]:
    out = []
    for step in _STEP.finditer(path):
        key = None if step[2] is None else _KEY.search(step[2])
        out.append(key[1] if key is not None else step[1] if step[2] is None else step[2].strip('"'))
    return out


def _named(rendered: Obj, steps: list[str]) -> list[str]:
    """Return steps in which an item of a list has its name instead of its index."""
    out: list[str] = []
    held: Any = rendered
    for step in steps:
        if isinstance(held, list):
            item = _item(held, step)
            name = item.get("mountPath", item.get("name")) if isinstance(item, dict) else None
            out.append(str(name) if name is not None else step)
            held = item
        else:
            out.append(step)
            held = held.get(step) if isinstance(held, dict) else None
    return out


def _item(held: list[Any], step: str) -> Any:
    """Return the item of a list that a step means, by its key or its index, or None."""
    for item in held:
        if isinstance(item, dict) and any(str(item[key]) == step for key in _KEYS if key in item):
            return item
    return held[int(step)] if step.isdigit() and int(step) < len(held) else None


def _joined(start: str, steps: list[str]) -> str:
    out, before = start, ""
    for step in steps:
        plain = re.fullmatch(r"[A-Za-z_][A-Za-z0-9_-]*", step) and before not in _LISTS
        out += f".{step}" if plain else f"[{step}]"
        before = step
    return out


def described(rendered: Obj) -> str:
    """Return the kind and the name of a rendered object."""
    return f"{rendered['kind']} {name_of(rendered)}"
