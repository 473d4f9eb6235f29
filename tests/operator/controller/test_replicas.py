"""One number, one writer at a time."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.controller.replicas import DECLARED, Declared, Replicas, decide


def pool(replicas: int | None, declared: str | None = None, scaled_by: str | None = None) -> dict[str, Any]:
    managed = [
        {"manager": "disagg-operator", "time": "2026-01-01T00:00:00Z", "fieldsV1": {"f:spec": {"f:replicas": {}}}}
    ]
    if scaled_by:
        fields: dict[str, Any] = {"f:spec": {"f:replicas": {}}}
        managed.append({"manager": scaled_by, "time": "2026-01-02T00:00:00Z", "fieldsV1": fields})
    return {
        "metadata": {"annotations": {DECLARED: declared} if declared else {}, "managedFields": managed},
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
