"""An apply is skipped if the object in the cluster already matches the rendered one."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from disagg_operator.controller.drift import APPLIED_HASH, stamped, up_to_date

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
    obj = stamped(RENDERED)
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
