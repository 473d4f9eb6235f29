"""What pods say of their drains, and what has been told of it already."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_operator.controller import drain_ends
from disagg_operator.controller.drain_ends import TOLD_ANNOTATION, DrainEnd, ends_in, told_with, unanswered
from disagg_operator.kube.pods import DRAIN_UNTIL
from disagg_wire.drain_report import message_of

DELETED = "2026-01-01T00:05:00Z"  # 300 s after the deletion began


def ended(message: Any = None, code: int = 0, **more: Any) -> dict[str, Any]:
    return {"terminated": {"exitCode": code, "message": message} | more}


def status(name: str = "main", restarts: int = 0, last: Any = None, **state: Any) -> dict[str, Any]:
    return {"name": name, "restartCount": restarts, "state": state, "lastState": last or {}}


def pod(*containers: dict[str, Any], component: str = "decode", phase: str = "Running", **meta: Any) -> dict[str, Any]:
    labels = {"app.kubernetes.io/component": component}
    metadata = {"name": "chat-x", "namespace": "default", "uid": "u", "labels": labels, "resourceVersion": "1"}
    deleted = {"deletionTimestamp": DELETED, "deletionGracePeriodSeconds": 300}
    return {"metadata": metadata | deleted | meta, "status": {"phase": phase, "containerStatuses": list(containers)}}


def told(*words: str) -> dict[str, str]:
    return {TOLD_ANNOTATION: ",".join(words)}


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(pod(status(**ended(message_of(3)))), [("main/0", 3, False)], id="cut off"),
        pytest.param(pod(status(**ended(message_of(0)))), [("main/0", 0, False)], id="complete"),
        pytest.param(pod(status(**ended(message_of(2), 137))), [("main/0", 2, True)], id="killed in the middle"),
        pytest.param(pod(status(**ended("", 137))), [("main/0", None, True)], id="killed without a word"),
        pytest.param(
            pod(status(**ended("", 137, finishedAt="2026-01-01T00:04:59Z"))), [("main/0", None, True)], id="at its end"
        ),
        pytest.param(pod(status(**ended("", 137, finishedAt="2025-12-31T23:00:00Z"))), [], id="long before"),
        pytest.param(
            pod(status("adapter", **ended("", 137)), status(**ended("", 137))),
            [("adapter/0", None, True)],
            id="an engine says nothing, its adapter does",
        ),
        pytest.param(
            pod(status(**ended(message_of(4), 137)), phase="Failed", deletionTimestamp=None),
            [("main/0", 4, True)],
            id="evicted by the kubelet",
        ),
        pytest.param(
            pod(status(**ended("", 137)), phase="Failed", deletionTimestamp=None), [], id="evicted without a word"
        ),
        pytest.param(
            pod(
                status(restarts=2, last=ended(message_of(5), 137), running={}),
                deletionTimestamp=None,
                annotations={DRAIN_UNTIL: DELETED},
            ),
            [("main/1", 5, True)],
            id="restarted while it was to go",
        ),
        pytest.param(
            pod(status(restarts=1, last=ended(message_of(5)), **ended(message_of(1))), annotations=told("main/0")),
            [("main/1", 1, False)],
            id="one of the two was told",
        ),
        pytest.param(pod(status(**ended(message_of(3))), annotations=told("main/0", "unanswered")), [], id="told"),
        pytest.param(pod(status(**ended(message_of(3))), deletionTimestamp=None), [], id="it stays"),
        pytest.param(pod(status(**ended("some last words"))), [], id="other words"),
        pytest.param(pod(status(**ended("", 143))), [], id="ended before it listened"),
        pytest.param(pod(status(running={})), [], id="it runs"),
        pytest.param(pod(status(terminated="odd")), [], id="odd"),
        pytest.param(pod({"name": "main"}), [], id="nothing"),
        pytest.param({"metadata": pod()["metadata"]}, [], id="no status"),
    ],
)
def test_what_a_pod_says(found: dict[str, Any], expected: list[tuple[str, int | None, bool]]) -> None:
    ends = ends_in(found)
    assert [(end.word, end.cut, end.killed) for end in ends] == expected
    assert all((end.pod, end.component) == ("chat-x", "decode") for end in ends)


@pytest.mark.parametrize(
    ("end", "words"),
    [
        (DrainEnd("w", "x", "decode", 3), "decode x: requests cut off at the end of its drain: 3; routers continue"),
        (DrainEnd("w", "x", "router", 3), "router x: requests cut off at the end of its drain: 3; they are lost"),
        (DrainEnd("w", "x", "decode", 3, True), "killed before the end of its drain; its requests: 3; routers"),
        (DrainEnd("w", "x", "router", None, True), "nobody knows how many requests it had; they are lost"),
    ],
)
def test_how_it_is_told(end: DrainEnd, words: str) -> None:
    assert end.note is not None
    assert (end.note.type, end.note.reason, words in end.note.message) == ("Warning", "DrainTimedOut", True)


def test_nothing_is_told_of_what_has_cost_nothing() -> None:
    assert DrainEnd("w", "x", "decode", 0).note is None
    assert DrainEnd("w", "x", "decode", 0, True).note is None


def test_what_was_told_before_stays_on_the_pod() -> None:
    found = pod(annotations=told("unanswered"))
    assert told_with(found, ["main/0"]) == {TOLD_ANNOTATION: "main/0,unanswered"}
    assert drain_ends.told_of(pod()) == frozenset()


def test_many_workers_that_do_not_answer_are_one_event() -> None:
    note = unanswered([{"metadata": {"name": f"p{i}"}} for i in range(7)])
    assert (note.type, note.reason) == ("Warning", "DrainUnanswered")
    assert note.message.startswith("p0, p1, p2, p3, p4 and 2 more: no answer to the call to drain")
    assert unanswered([{"metadata": {"name": "p"}}]).message.startswith("p: no answer")
