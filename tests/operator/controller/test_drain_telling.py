"""The ends of drains are told once, whichever operator leads."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import pytest
from tests.fakes.kube import FakeKube
from tests.operator.controller.test_drain_ends import ended, pod, status

from disagg_operator.controller import drain_telling
from disagg_operator.controller.drain_ends import TOLD_ANNOTATION
from disagg_operator.controller.drain_telling import DrainTeller
from disagg_operator.controller.metrics import Metrics
from disagg_operator.kube.errors import Conflict, Forbidden, KubeError, NotLeading
from disagg_operator.kube.resources import annotations_of
from disagg_operator.status.events import Note
from disagg_operator.vocabulary import Key, Obj
from disagg_wire.drain_report import message_of

KEY = ("default", "chat")


class Operator:
    """One of the operators of a cluster, for the length of one term."""

    def __init__(self, kube: FakeKube) -> None:
        self.metrics = Metrics()
        self.notes: list[Note] = []
        self.woken: list[Key] = []
        self.teller = DrainTeller(kube, self.metrics.drain_ended, self._note, self.woken.append, pause_s=0.0)

    def _note(self, _: Iterable[Key], note: Note | None) -> None:
        self.notes += [] if note is None else [note]

    async def lead(self, *listed: Obj, seen: Iterable[Obj] = ()) -> None:
        """Lead until everything has been told."""
        task = asyncio.create_task(self.teller.run({KEY: list(listed)}))
        await asyncio.sleep(0)
        for found in seen:
            self.teller.saw(found, {KEY})
        for _ in range(50):
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    def lines(self) -> set[str]:
        """Return the series of drains that are not 0."""
        text = self.metrics.text().decode()
        return {line for line in text.splitlines() if "_drain" in line and line[0] != "#" and not line.endswith(" 0.0")}


def cluster(*pods: Obj) -> FakeKube:
    kube = FakeKube()
    for one in pods:
        kube.put(one | {"apiVersion": "v1", "kind": "Pod"})
    return kube


def stored(kube: FakeKube, name: str = "chat-x") -> Obj:
    return kube.find("Pod", name)


def cut(number: int, **more: Any) -> Obj:
    return pod(status(**ended(message_of(number))), **more)


async def test_what_is_seen_again_and_by_the_next_operator_is_told_once() -> None:
    kube = cluster(cut(3))
    first, second = Operator(kube), Operator(kube)
    before = stored(kube)
    await first.lead(seen=[before] * 3)
    assert annotations_of(stored(kube)) == {TOLD_ANNOTATION: "main/0"}
    # The next one finds the pod as it is now, or as it was a moment ago.
    await second.lead(stored(kube), seen=[before, stored(kube)])
    assert [len(first.notes), len(second.notes)] == [1, 0]
    assert first.lines() == {
        'disagg_operator_drains_total{outcome="timed_out"} 1.0',
        'disagg_operator_drain_cut_requests_total{component="decode"} 3.0',
    }
    assert (first.woken, second.woken, second.lines()) == ([KEY], [], set())


async def test_what_ended_while_nobody_led_is_told_by_the_next_one() -> None:
    kube = cluster(cut(2, component="router"))
    operator = Operator(kube)
    await operator.lead(stored(kube))
    assert [note.reason for note in operator.notes] == ["DrainTimedOut"]
    assert 'disagg_operator_drain_cut_requests_total{component="router"} 2.0' in operator.lines()


async def test_outcomes_are_told_apart() -> None:
    pods = [
        cut(0, name="a", uid="a"),
        pod(status(**ended(message_of(4), 137)), name="b", uid="b"),
        pod(status(**ended("", 137)), name="c", uid="c"),
    ]
    kube = cluster(*pods)
    operator = Operator(kube)
    await operator.lead(*(stored(kube, name) for name in "abc"))
    assert operator.lines() == {
        'disagg_operator_drains_total{outcome="complete"} 1.0',
        'disagg_operator_drains_total{outcome="killed"} 2.0',
        'disagg_operator_drain_cut_requests_total{component="decode"} 4.0',
    }
    assert len(operator.notes) == 2


async def test_a_pod_that_is_gone_is_told_of_although_nothing_can_be_written() -> None:
    operator = Operator(cluster())
    await operator.lead(seen=[cut(1)])
    assert len(operator.notes) == 1


@pytest.mark.parametrize(("error", "told"), [(Forbidden("no"), 1), (NotLeading("no"), 0)])
async def test_what_cannot_be_written_is_told_if_this_operator_leads(error: KubeError, told: int) -> None:
    kube = cluster(cut(1))
    operator, calls = Operator(kube), 0

    async def refuse(*_: Any) -> Obj:
        nonlocal calls
        calls += 1
        raise error

    kube.merge = refuse  # type: ignore[method-assign, assignment]
    await operator.lead(seen=[stored(kube)] * 2)
    assert (len(operator.notes), calls) == (told, drain_telling._ATTEMPTS if told else 1)


async def test_a_pod_that_has_changed_is_read_again() -> None:
    kube = cluster(cut(1))
    operator, merge = Operator(kube), kube.merge

    async def changed(*args: Any) -> Obj:
        kube.merge = merge  # type: ignore[method-assign]
        raise Conflict("changed")

    kube.merge = changed  # type: ignore[method-assign, assignment]
    await operator.lead(seen=[stored(kube)])
    assert (len(operator.notes), annotations_of(stored(kube))) == (1, {TOLD_ANNOTATION: "main/0"})

    async def fail(*args: Any) -> Obj:
        raise Forbidden("no")

    kube.merge, kube.get = changed, fail  # type: ignore[method-assign, assignment]
    await operator.lead(seen=[cut(1, name="y", uid="y")])
    assert len(operator.notes) == 2


async def test_what_waits_and_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain_telling, "_MOST_PODS", 2)
    monkeypatch.setattr(drain_telling, "_REMEMBERED", 1)
    operator = Operator(cluster())
    await operator.lead(seen=[cut(1, uid=uid) for uid in ("a", "b", "c")])
    assert (len(operator.notes), len(operator.teller._known)) == (2, 1)
