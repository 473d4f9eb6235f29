"""Tests that whoever else sets a target is found and named."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.controller.scalers.scalers import scaler_object

from disagg_operator.api.disagg_scaler import ScaleTarget
from disagg_operator.controller.scalers.owners import other_owner
from disagg_operator.vocabulary import Obj

TARGET = ScaleTarget(name="p")
GROUPS = ScaleTarget(api_version="leaderworkerset.x-k8s.io/v1", kind="LeaderWorkerSet", name="p")
ROLE = ScaleTarget(api_version="disaggregatedset.x-k8s.io/v1", kind="DisaggregatedSetRoleScaler", name="p")
FREE: Obj = {"metadata": {"name": "p"}}


def owned(**ref: Any) -> Obj:
    return {"metadata": {"name": "p", "ownerReferences": [{"kind": "Graph", "name": "g", **ref}]}}


def aiming(kind: str, **ref: Any) -> Obj:
    return {"kind": kind, "metadata": {"name": "other"}, "spec": {"scaleTargetRef": ref}}


def of(
    target: ScaleTarget,
    obj: Obj = FREE,
    keda: tuple[Obj, ...] = (),
    hpa: tuple[Obj, ...] = (),
    scalers: tuple[Obj, ...] = (),
) -> str | None:
    return other_owner(target, obj, keda, hpa, scalers, scaler_object())


@pytest.mark.parametrize(
    ("target", "obj", "owner"),
    [
        (TARGET, FREE, None),
        (TARGET, owned(controller=True), "Graph g"),
        (TARGET, owned(), None),  # an owner that only lets it be deleted
        (ROLE, owned(controller=True), None),  # made by its parent to be scaled
        (GROUPS, owned(controller=True), "Graph g"),
    ],
)
def test_a_parent_that_controls_it(target: ScaleTarget, obj: Obj, owner: str | None) -> None:
    assert of(target, obj) == owner


HPA = "HorizontalPodAutoscaler"
KEDA = "ScaledObject"


@pytest.mark.parametrize(
    ("target", "ref", "found"),
    [
        (TARGET, {"apiVersion": "apps/v1", "kind": "Deployment", "name": "p"}, True),
        (TARGET, {"name": "p"}, True),  # KEDA's defaults
        (TARGET, {"apiVersion": "apps/v1beta2", "kind": "Deployment", "name": "p"}, True),
        (TARGET, {"apiVersion": "apps/v1", "kind": "StatefulSet", "name": "p"}, False),
        (TARGET, {"apiVersion": "apps/v1", "kind": "Deployment", "name": "q"}, False),
        (GROUPS, {"apiVersion": "leaderworkerset.x-k8s.io/v1", "kind": "LeaderWorkerSet", "name": "p"}, True),
        (GROUPS, {"apiVersion": "other.dev/v1", "kind": "LeaderWorkerSet", "name": "p"}, False),
        (TARGET, "nonsense", False),
    ],
)
def test_an_autoscaler_that_aims_at_it(target: ScaleTarget, ref: Any, found: bool) -> None:
    other = {"metadata": {"name": "other"}, "spec": {"scaleTargetRef": ref}}
    assert of(target, hpa=(other,)) == (f"{HPA} other" if found else None)
    assert of(target, keda=(other,)) == (f"{KEDA} other" if found else None)


def test_what_somebody_wrote_is_named_and_not_what_keda_made_of_it() -> None:
    made = {"metadata": {"name": "keda-hpa-other"}, "spec": {"scaleTargetRef": {"name": "p"}}}
    assert of(TARGET, keda=(aiming(KEDA, name="p"),), hpa=(made,)) == "ScaledObject other"


@pytest.mark.parametrize(
    ("name", "made", "spec", "found"),
    [
        ("a", "2026-11-01T00:00:00Z", {"mode": "Active"}, True),
        ("a", "2026-12-01T00:00:00Z", {"mode": "Active"}, True),  # of the same second, the uid decides
        ("z", "2026-12-01T00:00:00Z", {"mode": "Active"}, False),
        ("a", "2026-12-02T00:00:00Z", {"mode": "Active"}, False),
        ("a", "2026-11-01T00:00:00Z", {"mode": "Shadow"}, False),
        ("a", "2026-11-01T00:00:00Z", {}, False),
        ("a", "2026-11-01T00:00:00Z", {"mode": "Active", "prefill": {}, "decode": None}, False),
    ],
)
def test_the_older_one_of_two_active_scalers_has_it(name: str, made: str, spec: Obj, found: bool) -> None:
    other = scaler_object(name, **spec)
    other["metadata"]["creationTimestamp"] = made
    assert of(TARGET, scalers=(other, scaler_object())) == ("DisaggScaler a" if found else None)
