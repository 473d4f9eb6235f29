"""The ends of drains are told once, with what was cut off."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.controller import drain_ends
from disagg_operator.controller.drain_ends import DrainEnds
from disagg_operator.controller.metrics import Metrics
from disagg_operator.status.events import Note
from disagg_wire.drain_report import message_of

KEY = ("default", "chat")


def pod(message: Any, component: str = "decode", uid: str = "u", **more: Any) -> dict[str, Any]:
    ended = {"exitCode": 0, "message": message}
    labels = {"app.kubernetes.io/component": component}
    meta = {"name": "chat-x", "uid": uid, "labels": labels, "deletionTimestamp": "2026-01-01T00:00:00Z"} | more
    return {"metadata": meta, "status": {"containerStatuses": [{"name": "main", "state": {"terminated": ended}}]}}


class Told:
    def __init__(self) -> None:
        self.metrics = Metrics()
        self.notes: list[Note] = []
        self.ends = DrainEnds(
            self.metrics.drain_ended, lambda _, note: self.notes.extend([] if note is None else [note])
        )

    def lines(self) -> set[str]:
        text = self.metrics.text().decode()
        return {line for line in text.splitlines() if "_drain" in line and line[0] != "#" and "_created" not in line}


def test_requests_that_were_cut_off_are_counted_and_told_once() -> None:
    told = Told()
    for _ in range(3):
        told.ends.saw(pod(message_of(3)), {KEY})
    told.ends.saw(pod(message_of(0), uid="other"), {KEY})
    told.ends.saw(pod(message_of(2), "router", uid="router"), {KEY})
    assert told.lines() == {
        'disagg_operator_drains_total{outcome="timed_out"} 2.0',
        'disagg_operator_drains_total{outcome="complete"} 1.0',
        'disagg_operator_drain_cut_requests_total{component="decode"} 3.0',
        'disagg_operator_drain_cut_requests_total{component="router"} 2.0',
    }
    assert [(note.type, note.reason) for note in told.notes] == [("Warning", "DrainTimedOut")] * 2
    assert "decode chat-x: requests cut off at the end of its drain: 3; routers continue" in told.notes[0].message
    assert "they are lost" in told.notes[1].message


@pytest.mark.parametrize(
    "found",
    [
        pod(message_of(3), deletionTimestamp=None),
        pod("some last words"),
        pod(None),
        {"metadata": {"name": "x", "uid": "u", "deletionTimestamp": "2026-01-01T00:00:00Z"}},
        pod(message_of(1)) | {"status": {"containerStatuses": [{"name": "main", "state": {"running": {}}}]}},
        pod(message_of(1)) | {"status": {"containerStatuses": [{"name": "main", "state": {"terminated": "odd"}}]}},
    ],
)
def test_pods_that_tell_of_no_drain(found: dict[str, Any]) -> None:
    told = Told()
    told.ends.saw(found, {KEY})
    assert (told.lines(), told.notes) == (set(), [])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_ends, "_REMEMBERED", 2)
    told = Told()
    for uid in ("a", "b", "c", "a"):
        told.ends.saw(pod(message_of(1), uid=uid), {KEY})
    assert len(told.notes) == 4
    told.ends.saw(pod(message_of(1), uid="c"), {KEY})
    assert len(told.notes) == 4
