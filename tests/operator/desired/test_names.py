"""Tests of the names, labels and owner references by which a deployment's objects are found."""

from __future__ import annotations

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import parse
from disagg_operator.desired import names

DD = parse(good())


def test_children_are_named_after_the_deployment() -> None:
    assert (names.pool_name("chat", "prefill"), names.router_name("chat")) == ("chat-prefill", "chat-router")
    assert (names.key_secret_name("chat"), names.network_name("chat")) == ("chat-cluster-key", "chat-kv")


@pytest.mark.parametrize("component", ["prefill", "decode", "router", "worker", "shared"])
def test_the_labels_of_a_component_hold_its_selector_and_only_pools_have_the_label_of_one(component: str) -> None:
    found = names.labels("chat", component)
    assert names.selector("chat", component).items() <= found.items()
    assert found.get("disagg.dev/pool") == (component if component in ("prefill", "decode") else None)
    assert (found["app.kubernetes.io/instance"], found["app.kubernetes.io/managed-by"]) == ("chat", "disagg-operator")


def test_a_selector_as_text_is_what_the_api_server_takes() -> None:
    text = names.selector_text("chat", "decode")
    assert dict(part.split("=") for part in text.split(",")) == names.selector("chat", "decode")


def test_an_object_has_one_owner_that_controls_it_and_waits_for_it() -> None:
    for owners, kind, name in (
        (names.owned_by_deployment(DD, "u1"), "DisaggDeployment", "chat"),
        (names.owned_by_pool(DD, "decode", "u1"), "DisaggPool", "chat-decode"),
    ):
        assert owners == [
            {
                "apiVersion": "disagg.dev/v1alpha1", "kind": kind, "name": name, "uid": "u1", "controller": True,
                "blockOwnerDeletion": True,
            }
        ]  # fmt: skip


def test_annotations_are_left_out_where_there_are_none() -> None:
    plain = names.metadata(DD, "chat-x", "shared", [])
    assert (plain["name"], plain["namespace"], "annotations" in plain) == ("chat-x", "default", False)
    assert names.metadata(DD, "chat-x", "shared", [], {"a": "b"})["annotations"] == {"a": "b"}
