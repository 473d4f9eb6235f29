"""Tests of the merge of a podTemplate into the generated one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.api.resources import Obj, good
from tests.operator.desired.facts import FACTS

from disagg_operator.api import parse
from disagg_operator.desired import render
from disagg_operator.desired.merge import merge

CASES: dict[str, tuple[Any, Any, Any]] = {
    "maps merge by key": ({"a": 1, "b": {"c": 1}}, {"b": {"d": 2}}, {"a": 1, "b": {"c": 1, "d": 2}}),
    "null removes a key": ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
    "null of what isn't there is nothing": ({"b": 2}, {"a": None}, {"b": 2}),
    "containers merge by name": (
        {"containers": [{"name": "main", "image": "x", "tty": True}]},
        {"containers": [{"name": "side"}, {"name": "main", "image": "y"}]},
        {"containers": [{"name": "main", "image": "y", "tty": True}, {"name": "side"}]},
    ),
    "a variable is replaced whole, not made of two sources": (
        {"env": [{"name": "A", "value": "1"}]},
        {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]},
        {"env": [{"name": "A", "valueFrom": {"fieldRef": {}}}]},
    ),
    "a volume is replaced whole": (
        {"volumes": [{"name": "cache", "emptyDir": {}}]},
        {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}]},
        {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "c"}}]},
    ),
    "items without the key are appended": ({"ports": [{"containerPort": 1}]}, {"ports": [{"containerPort": 2}]},
                                           {"ports": [{"containerPort": 1}, {"containerPort": 2}]}),
    "other lists are replaced": ({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_merge(case: str) -> None:
    base, patch, expected = CASES[case]
    assert merge(base, patch) == expected


_JSON = st.recursive(
    st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(st.sampled_from(["a", "b", "containers", "env", "name"]), inner, max_size=3),
    max_leaves=8,
)


@given(_JSON, _JSON)
def test_merging_twice_is_merging_once(base: Any, patch: Any) -> None:
    assert merge(merge(base, patch), patch) == merge(base, patch)


def _template(pod_template: Obj) -> Obj:
    objects = render(parse(good(decode={"podTemplate": pod_template})), FACTS)
    template: Obj = next(o for o in objects if o["kind"] == "Deployment" and o["metadata"]["name"] == "chat-decode")[
        "spec"
    ]["template"]
    return template


def test_a_patch_adds_to_the_worker_and_beside_it() -> None:
    spec = {"priorityClassName": "high", "containers": [{"name": "main", "tty": True}, {"name": "side", "image": "s"}]}
    pod = _template({"spec": spec, "metadata": {"annotations": {"a": "b"}}})
    main, side = pod["spec"]["containers"]
    assert main["tty"]
    assert main["readinessProbe"]
    assert side.items() >= {"name": "side", "image": "s"}.items()
    assert pod["spec"]["priorityClassName"] == "high"
    assert pod["metadata"]["annotations"] == {"a": "b"}


def test_a_patch_can_not_take_pods_away_from_their_selectors() -> None:
    labels = {"disagg.dev/deployment": "other", "disagg.dev/pool": "prefill", "team": "x"}
    found = _template({"metadata": {"labels": labels}})["metadata"]["labels"]
    assert (found["disagg.dev/deployment"], found["disagg.dev/pool"], found["team"]) == ("chat", "decode", "x")
