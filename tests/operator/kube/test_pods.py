"""Tests of the facts that are read from a pod, in which any field may still be missing."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.kube.pods import (
    DRAIN_UNTIL,
    address_of,
    epoch_s,
    http_port,
    identity_of,
    is_leaving,
    is_ready,
    is_terminating,
    pool_of,
    sort_pods,
)
from disagg_wire.labels import LABEL_COMPONENT, LABEL_POOL, ROUTER

READY = {"type": "Ready", "status": "True"}


def pod(
    name: str = "a", labels: dict[str, str] | None = None, ready: bool = True, ip: str = "10.0.0.1"
) -> dict[str, Any]:
    status = {"conditions": [READY] if ready else [], "podIP": ip}
    return {"metadata": {"name": name, "labels": labels or {}}, "status": status}


@pytest.mark.parametrize(
    ("meta", "leaving", "terminating"),
    [
        ({}, False, False),
        ({"annotations": None}, False, False),
        ({"annotations": {DRAIN_UNTIL: "2026-01-01T00:00:00Z"}}, True, False),
        ({"deletionTimestamp": "2026-01-01T00:00:00Z"}, True, True),
    ],
)
def test_a_pod_leaves_before_it_terminates(meta: dict[str, Any], leaving: bool, terminating: bool) -> None:
    found = pod()
    found["metadata"] |= meta
    assert (is_leaving(found), is_terminating(found)) == (leaving, terminating)


@pytest.mark.parametrize(
    ("changes", "ready"),
    [
        ({"status": {"conditions": [READY]}}, True),
        ({"status": {"conditions": [{"type": "Initialized", "status": "True"}, READY]}}, True),
        ({"status": {"conditions": [READY | {"status": "False"}]}}, False),
        ({"status": {"conditions": [{"type": "Initialized", "status": "True"}]}}, False),
        ({"status": {"conditions": None}}, False),
        ({"status": None}, False),
        ({}, False),
        ({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"conditions": [READY]}}, False),
    ],
)
def test_a_pod_is_ready_when_it_says_so_and_is_not_on_its_way_out(changes: dict[str, Any], ready: bool) -> None:
    assert is_ready({"metadata": {"name": "a"}} | changes) == ready


@pytest.mark.parametrize(
    ("spec", "port"),
    [
        (None, 8000),
        ({}, 8000),
        ({"containers": [{"name": "mesh"}, {"ports": [{"name": "kv", "containerPort": 9000}]}]}, 8000),
        (
            {
                "containers": [
                    {"name": "mesh", "ports": None},
                    {"ports": [{"containerPort": 1}, {"name": "http", "containerPort": 81}]},
                ]
            },
            81,
        ),
        ({"containers": [{"ports": [{"name": "http"}]}]}, 8000),
    ],
)
def test_the_http_port_is_the_one_of_that_name(spec: dict[str, Any] | None, port: int) -> None:
    assert http_port({"metadata": {}, "spec": spec}, 8000) == port


def test_a_pod_is_known_by_its_uid_and_else_by_its_name() -> None:
    assert identity_of({"metadata": {"name": "a", "uid": "u1"}}) == "u1"
    assert identity_of({"metadata": {"name": "a"}}) == "a"


@pytest.mark.parametrize("status", [None, {}, {"podIP": None}, {"podIP": ""}])
def test_a_pod_without_an_address_has_an_empty_one(status: Any) -> None:
    assert address_of({"metadata": {}, "status": status}) == ""


def test_pods_are_sorted_by_what_they_are_and_only_those_with_an_address_are_ready() -> None:
    def worker(name: str, role: str, **more: Any) -> dict[str, Any]:
        return pod(name, {LABEL_POOL: role}, **more)

    router = pod("r", {LABEL_COMPONENT: ROUTER})
    pods = [
        router,
        pod("r2", {LABEL_COMPONENT: ROUTER}, ready=False),
        worker("p", "prefill"),
        worker("p2", "prefill", ip=""),
        worker("d", "decode"),
        worker("d2", "decode", ready=False),
        pod("other"),
    ]
    found = sort_pods(pods)

    def names(listed: tuple[dict[str, Any], ...]) -> list[str]:
        return [p["metadata"]["name"] for p in listed]

    assert found.routers == (router,)
    assert {role: names(listed) for role, listed in found.workers.items()} == {"prefill": ["p"], "decode": ["d"]}
    assert {role: names(listed) for role, listed in found.all_of.items()} == {
        "prefill": ["p", "p2"],
        "decode": ["d", "d2"],
    }
    assert [pool_of(p) for p in pods] == ["", "", "prefill", "prefill", "decode", "decode", ""]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1970-01-01T00:00:00Z", 0.0), ("1970-01-01T00:01:00.5Z", 60.5), ("1970-01-01T01:00:00+01:00", 0.0)],
)
def test_a_time_is_in_seconds_since_1970(text: str, seconds: float) -> None:
    assert epoch_s(text) == seconds


def test_a_time_without_an_offset_is_not_known() -> None:
    assert math.isnan(epoch_s("1970-01-01T00:00:00"))


@given(
    st.text()
    | st.none()
    | st.integers()
    | st.sampled_from(["0001-01-01T00:00:00", "9999-12-31T23:59:59-23:59", "2026-13-01"])
)
def test_what_is_no_time_is_not_known(text: object) -> None:
    found = epoch_s(text)
    assert math.isnan(found) or math.isfinite(found)
