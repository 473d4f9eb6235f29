"""A pool has one number of replicas, and one writer at a time."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.controller.replicas import Declared, Replicas, decide, scale_owner
from disagg_operator.desired.pool_marks import DECLARED_ANNOTATION


def pool(replicas: int | None, declared: str | None = None, scaled_by: str | None = None) -> dict[str, Any]:
    managed = [
        {"manager": "disagg-operator", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    ]
    if scaled_by:
        fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
        managed.append({"manager": scaled_by, "time": "2026-01-02T00:00:00Z", "fieldsV1": fields})
    return {
        "metadata": {"annotations": {DECLARED_ANNOTATION: declared} if declared else {}, "managedFields": managed},
        "spec": {} if replicas is None else {"replicas": replicas},
    }


@pytest.mark.parametrize(
    ("declared", "live", "wanted", "expected"),
    [
        pytest.param(Declared(2), None, None, Replicas(2, "spec", "2"), id="a new pool starts as declared"),
        pytest.param(Declared(2), pool(2, "2"), None, Replicas(2, "spec", "2"), id="an untouched pool stays"),
        pytest.param(
            Declared(2),
            pool(5, "2", "kubectl"),
            None,
            Replicas(5, "kubectl", "2"),
            id="kubectl scale is kept, and named",
        ),
        pytest.param(
            Declared(3), pool(5, "2", "kubectl"), None, Replicas(3, "spec", "3"), id="an edited spec wins once"
        ),
        pytest.param(Declared(2), pool(0, "2", "hpa"), None, Replicas(0, "hpa", "2"), id="scaled to zero is kept"),
        pytest.param(
            Declared(2), pool(5), None, Replicas(2, "spec", "2"), id="a pool of unknown history follows the spec"
        ),
        pytest.param(
            Declared(bounds=(1, 8)), None, None, Replicas(1, "autoscaler", None), id="autoscaled starts at min"
        ),
        pytest.param(
            Declared(bounds=(1, 8)),
            pool(5, "5"),
            None,
            Replicas(5, "autoscaler", None),
            id="autoscaling takes over what runs",
        ),
        pytest.param(
            Declared(bounds=(1, 8)), pool(5), 3, Replicas(3, "autoscaler", None), id="a decision is carried out"
        ),
        pytest.param(Declared(bounds=(1, 4)), pool(5), None, Replicas(4, "autoscaler", None), id="bounds always hold"),
        pytest.param(Declared(bounds=(2, 4)), pool(3), 1, Replicas(2, "autoscaler", None), id="also over a decision"),
    ],
)
def test_decide(declared: Declared, live: dict[str, Any] | None, wanted: int | None, expected: Replicas) -> None:
    assert decide(declared, live, wanted) == expected


@pytest.mark.parametrize(
    ("declared", "live", "before", "after"),
    [
        pytest.param(
            Declared(2), pool(5, "2", "kubectl"), "suspended:2:5", Replicas(5, "kubectl", "2"), id="scaled by hand"
        ),
        pytest.param(Declared(2), pool(2, "2"), "suspended:2:2", Replicas(2, "spec", "2"), id="as declared"),
        pytest.param(Declared(2), None, "suspended:2:2", Replicas(2, "spec", "2"), id="never made"),
        pytest.param(
            Declared(bounds=(1, 8)), pool(5), "suspended:-:5", Replicas(5, "autoscaler", None), id="autoscaled"
        ),
        pytest.param(
            Declared(bounds=(3, 8)),
            None,
            "suspended:-:3",
            Replicas(3, "autoscaler", None),
            id="autoscaled and never made",
        ),
    ],
)
def test_a_suspended_pool_has_no_workers_and_comes_back_as_it_was(
    declared: Declared, live: dict[str, Any] | None, before: str, after: Replicas
) -> None:
    asleep = decide(declared, live, None, suspended=True)
    assert asleep == Replicas(0, "spec", before)
    stored = pool(0, before, "kubectl" if after.owner == "kubectl" else None)
    assert decide(declared, stored, 7, suspended=True) == asleep
    assert decide(declared, stored, None) == after


def test_what_is_edited_during_a_suspension_wins_after_it() -> None:
    assert decide(Declared(3), pool(0, "suspended:2:5"), None) == Replicas(3, "spec", "3")


@pytest.mark.parametrize("mark", ["suspended:", "suspended:2:", "suspended:2:x", "suspended"])
def test_a_mark_of_a_suspension_that_makes_no_sense_is_none(mark: str) -> None:
    assert decide(Declared(2), pool(5, mark), None) == Replicas(2, "spec", "2")


@pytest.mark.parametrize("spec", [None, {}, {"replicas": None}, {"replicas": "5"}, {"replicas": -1}])
def test_a_pool_without_a_size_has_the_declared_one(spec: Any) -> None:
    made = pool(5, "2") | {"spec": spec}
    assert decide(Declared(2), made, None) == Replicas(2, "spec", "2")


def manager(name: str | None, time: str, *fields: str) -> dict[str, Any]:
    return {"manager": name, "time": time, "fieldsV1": {"f:spec": {f"f:{field}": {} for field in fields}}}


@pytest.mark.parametrize(
    ("managed", "owner"),
    [
        (None, "spec"),
        ([manager("disagg-operator", "2", "replicas")], "spec"),
        ([manager("kubectl", "1", "replicas"), manager("hpa", "2", "replicas")], "hpa"),
        ([manager("hpa", "2", "replicas"), manager("kubectl", "1", "replicas")], "hpa"),
        ([manager("kubectl", "2", "paused")], "spec"),
        ([{"manager": "kubectl"}, {"manager": "hpa", "fieldsV1": {"f:spec": None}}], "spec"),
        ([manager("x" * 200, "1", "replicas")], "x" * 63),
    ],
)
def test_the_owner_of_a_size_is_the_last_other_who_wrote_it(managed: Any, owner: str) -> None:
    assert scale_owner({"metadata": {"managedFields": managed}}) == owner
