"""Tests of the paths on the API server, which are built from checked names only."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.kube.resources import (
    ALL,
    DEPLOYMENT,
    DISAGG_DEPLOYMENT,
    NODE,
    OWNED,
    POD,
    SECRET,
    Resource,
    annotations_of,
    labels_of,
    name_of,
    namespace_of,
    owned_by,
    resource_of,
    segment,
    uid_of,
)


@pytest.mark.parametrize(
    ("resource", "namespace", "name", "path"),
    [
        (POD, "ns", "a", "/api/v1/namespaces/ns/pods/a"),
        (POD, "ns", None, "/api/v1/namespaces/ns/pods"),
        (POD, None, None, "/api/v1/pods"),
        (DEPLOYMENT, "ns", "a", "/apis/apps/v1/namespaces/ns/deployments/a"),
        (DISAGG_DEPLOYMENT, "ns", "a", "/apis/disagg.dev/v1alpha1/namespaces/ns/disaggdeployments/a"),
        (NODE, None, "node.example", "/api/v1/nodes/node.example"),
        (NODE, "ns", None, "/api/v1/nodes"),
    ],
)
def test_an_object_has_the_path_of_its_kind(
    resource: Resource, namespace: str | None, name: str | None, path: str
) -> None:
    assert resource.path(namespace, name) == path


@given(
    st.text(max_size=12) | st.sampled_from(["", ".", "..", "a/b", "a..b", "-a", "a-", "a?x=1", "%2e", "a\n", "x" * 254])
)
def test_a_name_stands_in_a_path_as_it_is_or_is_refused(value: str) -> None:
    try:
        assert segment(value) == value
    except ValueError:
        return
    assert not set(value) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:_-")
    assert ".." not in value
    assert 0 < len(value) <= 253


@pytest.mark.parametrize("value", ["", "..", "a..b", "a/b", "-a", "a-", "a?x=1", "a\n", "x" * 254])
def test_what_would_change_a_path_is_refused(value: str) -> None:
    for namespace, name in ((value, "a"), ("ns", value)):
        if namespace:  # without a namespace, the path is that of all namespaces
            with pytest.raises(ValueError, match="not a name"):
                POD.path(namespace, name)


def test_each_kind_is_found_by_its_objects_and_another_is_refused() -> None:
    for resource in ALL:
        assert resource_of({"apiVersion": resource.api_version, "kind": resource.kind}) is resource
    for obj in ({}, {"apiVersion": "v1", "kind": "Namespace"}, {"apiVersion": "apps/v1", "kind": "Pod"}):
        with pytest.raises(ValueError, match="unknown kind"):
            resource_of(obj)


def test_secrets_are_never_listed() -> None:
    assert SECRET not in OWNED


def test_metadata_is_read_where_it_is_there() -> None:
    full: dict[str, Any] = {
        "metadata": {
            "name": "a", "namespace": "ns", "uid": "u1", "labels": {"x": "y"}, "annotations": {"z": "w"},
            "ownerReferences": [{"uid": "o1"}, {"uid": "o2"}],
        }
    }  # fmt: skip
    assert (name_of(full), namespace_of(full), uid_of(full)) == ("a", "ns", "u1")
    assert (labels_of(full), annotations_of(full)) == ({"x": "y"}, {"z": "w"})
    assert owned_by(full, frozenset({"o2"}))
    assert not owned_by(full, frozenset({"o3"}))


@pytest.mark.parametrize(
    "bare",
    [
        {"metadata": {"name": "a"}},
        {"metadata": {"name": "a", "labels": None, "annotations": None, "ownerReferences": None}},
    ],
)
def test_metadata_that_is_not_there_is_empty(bare: dict[str, Any]) -> None:
    assert (namespace_of(bare), uid_of(bare), labels_of(bare), annotations_of(bare)) == (None, "", {}, {})
    assert not owned_by(bare, frozenset({"o1"}))
