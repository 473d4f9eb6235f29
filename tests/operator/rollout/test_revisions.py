"""Revisions as ControllerRevisions: what they hold, what changed, and how to go back."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.rollout import revisions
from disagg_operator.rollout.revisions import FAILED_ANNOTATION, KnownRevision
from disagg_operator.vocabulary import Obj

SPEC: dict[str, Any] = {
    "model": {"uri": "a", "name": "n"},
    "prefill": {"replicas": 2, "args": ["x"], "maxSurge": 1},
    "decode": {"autoscaling": {"maxReplicas": 3}, "podTemplate": {"spec": {"nodeName": "n"}}},
    "router": {"replicas": 1},
    "rollout": {"paused": True},
}


def stored(number: int, pair: tuple[str, str] = ("p", "d"), failed: str = "") -> Obj:
    name = revisions.pair_name(*pair)
    meta: Obj = {"name": revisions.object_name("chat", name), "creationTimestamp": "t"}
    meta["annotations"] = {FAILED_ANNOTATION: failed} if failed else {}
    return revisions.revision_object(meta, pair, SPEC, number)


def test_a_revision_holds_what_makes_the_pods_and_no_sizes() -> None:
    (known,) = revisions.known_revisions([stored(4, failed="7")])
    assert (known.name, known.number, known.pair, known.failed_generation) == ("p-d", 4, ("p", "d"), 7)
    assert (known.of("prefill"), known.of("decode"), known.created) == ("p", "d", "t")
    assert known.spec == {
        "model": SPEC["model"],
        "prefill": {"args": ["x"]},
        "decode": {"podTemplate": {"spec": {"nodeName": "n"}}},
    }


@pytest.mark.parametrize("data", [None, {}, {"prefill": "p", "decode": "d"}, {"spec": {}, "prefill": 1, "decode": "d"}])
def test_what_others_have_written_is_no_revision(data: Any) -> None:
    assert revisions.known_revisions([{**stored(1), "data": data}, {**stored(1), "kind": "ConfigMap"}]) == []


def test_revisions_come_in_the_order_of_their_numbers() -> None:
    found = revisions.known_revisions([stored(3, ("c", "c")), stored(1, ("a", "a")), stored(2)])
    assert [r.name for r in found] == ["a", "p-d", "c"]


def _patched(target: Any, patch: Any) -> Any:
    """Apply a JSON merge patch."""
    if not isinstance(patch, dict):
        return patch
    out = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            out.pop(key, None)
        else:
            out[key] = _patched(out.get(key), value)
    return out


@pytest.mark.parametrize(
    "then",
    [
        pytest.param({"model": {"uri": "b"}, "prefill": {}, "decode": {}}, id="fields that were not there"),
        pytest.param({**SPEC, "engine": {"type": "vllm"}}, id="fields that are not there any more"),
        pytest.param({**SPEC, "decode": {"podTemplate": {"spec": {"nodeName": "m"}}}}, id="a field of a template"),
        pytest.param({**SPEC, "prefill": {"args": []}}, id="a list"),
    ],
)
def test_undo_declares_the_pods_of_a_revision_again_and_leaves_the_rest(then: dict[str, Any]) -> None:
    wanted = revisions.pods_part(then)
    spec = _patched(SPEC, revisions.undo_patch(SPEC, wanted)["spec"])
    assert revisions.pods_part(spec) == wanted
    assert {k: spec[k] for k in ("router", "rollout")} == {k: SPEC[k] for k in ("router", "rollout")}
    assert spec["prefill"]["replicas"] == 2
    assert spec["decode"]["autoscaling"] == SPEC["decode"]["autoscaling"]


def test_there_is_nothing_to_undo_between_equal_specs() -> None:
    assert revisions.undo_patch(SPEC, revisions.pods_part(SPEC)) == {}


def test_changes_are_paths() -> None:
    before = {"model": {"uri": "a", "name": "n"}, "engine": {"type": "x"}}
    after = {"model": {"uri": "b", "name": "n"}, "decode": {"args": []}}
    assert revisions.changes(before, after) == ["decode", "engine", "model.uri"]


def test_the_oldest_revisions_beyond_the_limit_are_superfluous_unless_they_run() -> None:
    known = revisions.known_revisions([stored(n, (str(n), str(n))) for n in range(1, 6)])
    assert revisions.superfluous(known, ["1", "5"], 2) == ["2"]
    assert revisions.by_name([stored(1)], "chat", "p-d") == stored(1)
    assert revisions.by_name([stored(1)], "chat", "other") is None


@pytest.mark.parametrize(
    ("model", "name"),
    [({"uri": "hf://a/b"}, "b"), ({"uri": "file:///m/c/"}, "c"), ({"uri": "hf://a/b", "name": "d"}, "d"), (None, "")],
)
def test_a_revision_knows_the_name_of_its_model(model: Any, name: str) -> None:
    assert KnownRevision("r", 1, "p", "d", None, "", {} if model is None else {"model": model}).model_name == name
