"""The value of the field that a violation blames."""

from __future__ import annotations

import pytest

from disagg_operator.api.violation import Violation, value_at

SPEC = {
    "spec": {
        "list": [{"name": "a", "x": 1}, {"mountPath": "/b", "x": 2}, "c"],
        "map": {"a.b/c": 3, "d": {"e": 4}},
        "none": None,
    }
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.list[a].x", 1),
        ("spec.list[/b].x", 2),
        ("spec.list[0].x", 1),
        ("spec.list[2]", "c"),
        ("spec.list[3]", None),
        ("spec.list[z].x", None),
        ("spec.map[a.b/c]", 3),
        ("spec.map.d.e", 4),
        ("spec.map.d.e.f", None),
        ("spec.map.d.e[0]", None),
        ("spec.none.x", None),
        ("spec.absent", None),
    ],
)
def test_a_path_leads_to_a_value(path: str, value: object) -> None:
    assert value_at(SPEC, path) == value


def test_a_violation_is_told_with_its_path() -> None:
    assert str(Violation("spec.a", "is wrong")) == "spec.a: is wrong"
