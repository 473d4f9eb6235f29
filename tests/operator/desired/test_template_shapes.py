"""A podTemplate of any shape is refused, or gives a pod that has what the operator needs of it."""

from __future__ import annotations

import contextlib
import copy
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.operator.api.resources import good, of

from disagg_operator.api.namespace_policy import NamespacePolicy, Permission
from disagg_operator.api.v1alpha1 import read
from disagg_operator.controller.acceptance import Refused, assess
from disagg_operator.desired import Images
from disagg_operator.desired.attachments import NETWORKS_ANNOTATION
from disagg_operator.desired.pod_templates import router_template, worker_template
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_REVISION

_VALUES: tuple[Any, ...] = (
    None, [], {}, "", "x", 0, 1, True, 1.5, [None], [{}], {"a": None}, [{"name": None}], [{"mountPath": []}],
    [{"name": []}], [[]],
)  # fmt: skip
EVERYTHING = NamespacePolicy(allow=tuple(Permission))
_NETWORK = {"network": {"attachmentRef": {"name": "fast"}, "rdmaResource": {"name": "rdma/a"}}}
_PAIR_OF_GPUS = {"accelerator": {"count": 2}, "parallelism": {"tensor": 2}}
_OWNED = ("image", "command", "args", "startupProbe", "readinessProbe", "livenessProbe")


Patcher = Callable[[Any], Any]


def _resource(engine: str) -> Obj:
    return of("vllm") if engine == "vllm" else good(decode=_PAIR_OF_GPUS, kvTransfer=_NETWORK)


def _template(resource: Obj, role: str) -> Obj:
    dd = read(resource)
    return router_template(dd, Images()) if role == "router" else worker_template(dd, role, Images())[0]


def _itself(patch: Any) -> Any:
    return patch


def _under(make: Patcher, key: Any) -> Patcher:
    return lambda value: make({key: value})


def _in_item(make: Patcher, names: Obj, field: str) -> Patcher:
    return lambda value: make([{**names, field: value}])


def _patches(held: Any, make: Patcher) -> Iterator[Patcher]:
    """Yield a function for each part of a template that makes the patch with a value there."""
    yield make
    if isinstance(held, dict):
        for key, value in held.items():
            yield from _patches(value, _under(make, key))
    for item in held if isinstance(held, list) else ():
        key = next((key for key in ("mountPath", "name") if isinstance(item, dict) and key in item), None)
        for field, value in item.items() if key is not None else ():
            names = {k: v for k, v in item.items() if k in ("name", "mountPath") and k != field}
            yield from _patches(value, _in_item(make, names, field))


def _containers(template: Obj) -> dict[str, Obj]:
    pod = template["spec"]
    return {c["name"]: c for kind in ("containers", "initContainers") for c in pod.get(kind) or []}


def _lost(before: Obj, after: Obj) -> Iterator[str]:
    """Yield what the operator needs of a pod and a patch has taken away."""
    grace_s = after["spec"].get("terminationGracePeriodSeconds", 30)
    if type(grace_s) is int and grace_s < 300 and "router" not in before["metadata"]["labels"].values():
        yield "terminationGracePeriodSeconds"
    networks = [(t["metadata"].get("annotations") or {}).get(NETWORKS_ANNOTATION) for t in (before, after)]
    if networks[0] != networks[1] or not before["metadata"]["labels"].items() <= after["metadata"]["labels"].items():
        yield "metadata"
    theirs = _containers(after)
    for name, ours in _containers(before).items():
        yield from (f"{name}.{place}" for place in _lost_of_container(ours, theirs[name]))


def _lost_of_container(ours: Obj, theirs: Obj) -> Iterator[str]:
    yield from (field for field in _OWNED if theirs.get(field) != ours.get(field))
    for field, key in (("volumeMounts", "mountPath"), ("ports", "name")):
        kept = {str(i.get(key)): i.get("name") for i in theirs.get(field) or [] if isinstance(i, dict)}
        if any(kept.get(item[key]) != item["name"] for item in ours.get(field) or []):
            yield field
    for section, amounts in ours.get("resources", {}).items():
        devices = {name: amount for name, amount in amounts.items() if "/" in name}.items()
        if not devices <= ((theirs.get("resources") or {}).get(section) or {}).items():
            yield f"resources.{section}"
    context = theirs["securityContext"]
    if context["allowPrivilegeEscalation"] is not False or context["capabilities"]["drop"] != ["ALL"]:
        yield "securityContext"


@pytest.mark.parametrize(("engine", "role"), [("builtin", "decode"), ("vllm", "decode"), ("builtin", "router")])
def test_no_part_is_taken_away_by_a_value_of_another_kind(engine: str, role: str) -> None:
    resource = _resource(engine)
    before = _template(resource, role)
    before["metadata"]["labels"].pop(LABEL_REVISION, None)
    makers = [make for part in ("metadata", "spec") for make in _patches(before[part], _under(_itself, part))]
    for make, value in itertools.product(makers, _VALUES):
        edited = copy.deepcopy(resource)
        edited["spec"].setdefault(role, {})["podTemplate"] = make(value)
        try:
            if assess(edited, NamespacePolicy()).violations:
                continue
        except Refused:
            continue
        after = _template(edited, role)
        after["metadata"]["labels"].pop(LABEL_REVISION, None)
        assert list(_lost(before, after)) == [], make(value)


# Parts that the operator does not have, so that nothing says of which kind they must be.
_SIDE: Obj = {
    "name": "side", "image": "i", "resources": {"limits": {"a": "1"}}, "ports": [{"name": "p", "containerPort": 9}],
    "volumeMounts": [{"name": "v", "mountPath": "/v"}], "env": [{"name": "A", "value": "b"}],
    "lifecycle": {"preStop": {"httpGet": {"host": "h"}}},
    "securityContext": {"capabilities": {"drop": ["ALL"], "add": ["X"]}, "seccompProfile": {"type": "t"}},
}  # fmt: skip
_FURTHER: Obj = {
    "spec": {
        "containers": [_SIDE],
        "volumes": [
            {"name": "v", "projected": {"sources": [{"secret": {"name": "s"}}]}},
            {"name": "w", "image": {"reference": "r"}},
        ],
        "resourceClaims": [{"name": "c"}],
        "securityContext": {"seccompProfile": {"type": "t"}},
        "priorityClassName": "p",
    }
}


@pytest.mark.parametrize("role", ["decode", "router"])
def test_further_parts_of_any_kind_are_judged(role: str) -> None:
    for make, value in itertools.product(_patches(_FURTHER["spec"], _under(_itself, "spec")), _VALUES):
        edited = good()
        edited["spec"].setdefault(role, {})["podTemplate"] = make(value)
        with contextlib.suppress(Refused):
            if not assess(edited, EVERYTHING).violations:
                _template(edited, role)
