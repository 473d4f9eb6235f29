"""An apply is skipped if the object in the cluster already matches the rendered one."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from disagg_operator.controller.drift import APPLIED_HASH, rendered_hash, stamped, up_to_date

RENDERED: dict[str, Any] = {
    "apiVersion": "apps/v1",
    "kind": "Deployment",
    "metadata": {"name": "a", "namespace": "n", "labels": {"x": "y"}},
    "spec": {
        "replicas": 2,
        "template": {
            "spec": {
                "containers": [
                    {
                        "name": "main",
                        "resources": {"limits": {"cpu": "1000m"}},
                        "args": ["a", "b"],
                        "env": [],
                        "hostNetwork": False,
                    }
                ],
                "volumes": [{"name": "tmp", "emptyDir": {}}],
            }
        },
    },
}


def live(change: str = "") -> dict[str, Any]:
    """Return the object as an API server returns it, with one change by another client."""
    obj = copy.deepcopy(stamped(RENDERED))
    obj["metadata"]["uid"] = "1"
    obj["status"] = {"replicas": 2}
    spec = obj["spec"]["template"]["spec"]
    main = spec["containers"][0]
    main["imagePullPolicy"] = "IfNotPresent"
    main["resources"]["limits"]["cpu"] = "1"
    del main["env"], main["hostNetwork"]
    match change:
        case "replicas":
            obj["spec"]["replicas"] = 5
        case "args":
            main["args"] = ["a"]
        case "label gone":
            obj["metadata"]["labels"] = {}
        case "sidecar":
            spec["containers"].insert(0, {"name": "mesh"})
        case "hash":
            obj["metadata"]["annotations"][APPLIED_HASH] = "older"
        case "quantity":
            main["resources"]["limits"]["cpu"] = "2"
    return obj


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param("", True, id="defaults and normalised quantities are no drift"),
        pytest.param("sidecar", True, id="a container that another manager added is theirs"),
        pytest.param("replicas", False, id="a changed number is drift"),
        pytest.param("quantity", False, id="a changed quantity is drift"),
        pytest.param("args", False, id="a shorter list is drift"),
        pytest.param("label gone", False, id="a removed label is drift"),
        pytest.param("hash", False, id="another rendering is applied, since it may have dropped a field"),
    ],
)
def test_up_to_date(change: str, same: bool) -> None:
    assert up_to_date(RENDERED, live(change)) is same


def test_the_precondition_is_no_part_of_the_rendering() -> None:
    locked = copy.deepcopy(RENDERED)
    locked["metadata"]["resourceVersion"] = "7"
    assert up_to_date(locked, live())
    assert stamped(locked)["metadata"]["resourceVersion"] == "7"


@pytest.mark.parametrize(
    ("wanted", "live", "same"),
    [
        pytest.param({}, None, True, id="an empty map is dropped"),
        pytest.param({"a": 1}, None, False, id="a full one is not"),
        pytest.param({"a": {}}, {"a": "text"}, False, id="a map became a text"),
        pytest.param([], None, True, id="an empty list is dropped"),
        pytest.param(["a"], None, False, id="a full one is missing"),
        pytest.param(["a"], "a", False, id="a list became a text"),
        pytest.param(["a"], ["a", "b"], False, id="a list of texts has one more"),
        pytest.param([], ["a"], False, id="a list that is to be empty is not"),
        pytest.param(
            [{"name": "a"}, {"name": "b"}],
            [{"name": "b"}, {"name": "c"}, {"name": "a"}],
            True,
            id="maps in another order",
        ),
        pytest.param([{"name": "a"}], [{"name": "b"}], False, id="a map is missing"),
        pytest.param("", None, True, id="an empty text is dropped"),
        pytest.param(0, None, True, id="a zero is dropped"),
        pytest.param(False, None, True, id="a false is dropped"),
        pytest.param("a", None, False, id="a text is missing"),
        pytest.param(True, 1, True, id="equal in Python"),
        pytest.param(True, "1", False, id="true is no quantity"),
        pytest.param("1000m", "1", True, id="thousandths"),
        pytest.param("1Gi", "1024Mi", True, id="powers of two"),
        pytest.param("1G", "1Gi", False, id="powers of ten are others"),
        pytest.param(2, "2", True, id="a number and its text"),
        pytest.param("1.5", "1500m", True, id="a fraction"),
        pytest.param("a", "b", False, id="texts that are no quantities"),
        pytest.param("1x", "1", False, id="no such unit"),
        pytest.param("m", "m1", False, id="a unit without a number"),
        pytest.param("mm", "1m", False, id="two units"),
    ],
)
def test_what_the_api_server_keeps_is_no_drift_and_anything_else_is(wanted: Any, live: Any, same: bool) -> None:
    rendered = {"metadata": {"name": "a"}, "spec": {"field": wanted}}
    there = stamped(rendered) | {"spec": {"field": live}}
    assert up_to_date(rendered, there) is same


def test_an_entry_that_somebody_adds_to_a_selector_is_drift_and_one_of_other_maps_is_theirs() -> None:
    rendered: dict[str, Any] = {
        "metadata": {"name": "a"},
        "spec": {"selector": {"app": "a"}, "template": {"app": "a"}, "podSelector": {}},
    }
    there = stamped(rendered)
    assert up_to_date(rendered, {**there, "spec": {"selector": {"app": "a"}, "template": {"app": "a", "x": "y"}}})
    assert not up_to_date(rendered, {**there, "spec": {**rendered["spec"], "selector": {"app": "a", "x": "y"}}})
    assert not up_to_date(rendered, {**there, "spec": {**rendered["spec"], "podSelector": {"matchLabels": {"x": "y"}}}})


def test_a_status_is_never_applied_and_no_drift() -> None:
    rendered: dict[str, Any] = {"metadata": {"name": "a"}, "status": {"phase": "Ready"}}
    assert up_to_date(rendered, stamped(rendered) | {"status": {"phase": "Failed"}})


def test_the_hash_is_of_what_is_rendered_in_any_order() -> None:
    one = {"metadata": {"name": "a", "labels": {"x": "1", "y": "2"}}}
    other = {"metadata": {"labels": {"y": "2", "x": "1"}, "name": "a"}}
    assert rendered_hash(one) == rendered_hash(other)
    assert rendered_hash(one) != rendered_hash({"metadata": {"name": "b", "labels": {"x": "1", "y": "2"}}})
