"""What the operator leaves as it is for now, and what it says about that."""

from __future__ import annotations

from disagg_operator.controller import drift, restraint
from disagg_operator.kube.contests import LONGEST_PAUSE_S, Contests
from disagg_operator.vocabulary import Obj

RENDERED: Obj = {"kind": "Service", "metadata": {"name": "chat"}, "spec": {"port": 80}}
WHICH = ("Service", "chat")


def changed_by(manager: str) -> Obj:
    return {**RENDERED, "metadata": {"name": "chat", "managedFields": [{"manager": manager}]}, "spec": {"port": 81}}


def test_an_object_that_is_as_it_should_be_or_is_absent_never_waits() -> None:
    contests = Contests()
    for at_s in range(10):
        contests.wrote(WHICH, drift.rendered_hash(RENDERED), float(at_s))
    assert restraint.pause(contests, RENDERED, drift.stamped(RENDERED), 9.0) == (0.0, [])
    assert restraint.pause(Contests(), RENDERED, None, 9.0) == (0.0, [])


def test_an_object_that_somebody_insists_on_waits_and_is_told_with_his_name() -> None:
    contests, told = Contests(), []
    for at_s in (0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0):
        wait_s, notes = restraint.pause(contests, RENDERED, changed_by("argo"), at_s)
        told.append(len(notes))
        contests.wrote(WHICH, drift.rendered_hash(RENDERED), at_s)
        assert 0 <= wait_s <= LONGEST_PAUSE_S
    assert told == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    wait_s, (note,) = restraint.pause(contests, RENDERED, changed_by("argo"), 129.0)
    assert wait_s == LONGEST_PAUSE_S - 1
    assert note.reason == "ContestedObject"
    assert "Service chat is changed again and again by argo" in note.message


def test_fields_that_the_installed_crd_drops_are_named_but_not_all_of_them() -> None:
    note = restraint.fields_dropped([f"spec.f{i}" for i in range(9)])
    assert note.reason == "FieldsDropped"
    assert "spec.f4" in note.message
    assert "spec.f5" not in note.message
