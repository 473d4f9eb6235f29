"""Numbers and quantities of a pod template that can't be read, each with its path."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.desired.template_numbers import number_problems


@pytest.mark.parametrize(
    "amount", ["10GB", "lots", "", "1 Gi", "0x1", "1,5", "Gi", "1e", True, None, [1], {}], ids=repr
)
def test_what_is_no_quantity_is_told(amount: Any) -> None:
    parts = {"resources": {"limits": {"nvidia.com/gpu": amount}}}
    assert [path for path, _ in number_problems(parts, "a")] == ["a.resources.limits[nvidia.com/gpu]"]


@pytest.mark.parametrize(
    "amount", ["10G", "500m", "1.5Gi", ".5", "1.", "+2", "1e3", "1E3", "12E", 2, 0.5, "-1"], ids=repr
)
def test_what_is_one_is_not(amount: Any) -> None:
    assert list(number_problems({"requests": {"cpu": amount}, "sizeLimit": amount}, "a")) == []


def test_paths_name_the_items_of_lists() -> None:
    spec = {
        "containers": [{"name": "main", "resources": {"requests": {"cpu": "x"}}}, {"ports": [{"containerPort": 1.5}]}],
        "volumes": [{"name": "v", "emptyDir": {"sizeLimit": "x"}}],
        "grace": 1 << 63,
        "limits": "none",
        "a.b": {"c": 2.5},
        "fine": [1, 2.0, "x", True, None, -(1 << 63)],
    }
    assert [path for path, _ in number_problems(spec, "p")] == [
        "p.containers[main].resources.requests.cpu",
        "p.containers[1].ports[0].containerPort",
        "p.volumes[v].emptyDir.sizeLimit",
        "p.grace",
        "p[a.b].c",
    ]
