"""Tests of the looks at a deployment that may be scaled to zero."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.autoscaling import zero_watch
from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.signals.pod_facts import Starts
from disagg_operator.controller.acceptance import accept
from disagg_operator.kube.pods import sort_pods
from disagg_operator.vocabulary import Obj

POOLS: dict[str, Any] = {"prefill": {"autoscaling": {"maxReplicas": 4}}, "decode": {"autoscaling": {"maxReplicas": 8}}}
PEAK = {"name": "morning", "from": "08:30", "to": "10:00", "prefill": 1, "decode": 2}
EIGHT_O_CLOCK = 8 * 3600.0


def router(name: str, **status: Any) -> Obj:
    labels = {"app.kubernetes.io/component": "router", "disagg.dev/deployment": "chat"}
    found = {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}], **status}
    return {"metadata": {"name": name, "uid": name, "labels": labels}, "status": found}


class Looks:
    """Looks at a deployment with one router, one every 10 s."""

    def __init__(self, **scaling: Any) -> None:
        spec = {**POOLS, "scaling": {"scaleToZero": {"idleSeconds": 30}, **scaling}}
        self.plan = accept(good(**spec)).scaling
        self.entry, self.now_s, self.epoch_s = Live(), 0.0, 0.0
        self.pods = [router("a")]
        self.resource: Obj = {
            "metadata": {"generation": 3},
            "status": {
                "observedGeneration": 3,
                "conditions": [
                    {"type": "Available", "status": "True"},
                    {"type": "Progressing", "reason": "RolloutComplete"},
                ],
            },
        }

    @property
    def why(self) -> str:
        """Why it is not at zero although nobody asks, as a reason."""
        return "" if self.entry.awake is None else self.entry.awake[0]

    def look(self, idle_s: float | None = 1e6, *, held: int = 0, resting: bool = False) -> bool:
        self.now_s += 10
        states = [] if idle_s is None else [{"idle_s": idle_s, "held": held}]
        return zero_watch.look(
            ("ns", "chat"), self.entry, self.plan, sort_pods(self.pods), states, self.resource,
            self.now_s, self.epoch_s, resting=resting,
        )  # fmt: skip


def test_after_a_while_without_requests_there_is_something_to_do() -> None:
    looks = Looks()
    assert [looks.look() for _ in range(5)] == [False, False, False, True, True]
    assert looks.look(29) is False
    assert looks.look(None) is False
    assert looks.look() is True


@pytest.mark.parametrize(
    ("pod", "expected"),
    [
        pytest.param(router("b", conditions=[]), "RoutersSilent", id="one that is not ready any more"),
        pytest.param(router("b", phase="Pending", podIP="", conditions=[]), "", id="one without a node"),
        pytest.param(router("b", phase="Failed", conditions=[]), "", id="one that has ended"),
    ],
)
def test_a_router_that_cannot_be_asked_may_have_streams(pod: Obj, expected: str) -> None:
    looks = Looks()
    looks.pods.append(pod)
    assert [looks.look() for _ in range(5)] == [False, False, False, True, not expected]
    assert looks.why == expected


def test_nobody_goes_while_none_can_be_served_nor_in_a_dry_run_nor_before_a_peak() -> None:
    looks = Looks()
    looks.resource["status"]["conditions"][0]["status"] = "False"
    assert not any(looks.look() for _ in range(9))
    # Status is to say why, once.
    once = [False, False, False, True, False, False]
    looks = Looks()
    looks.resource["metadata"]["generation"] = 4
    assert [looks.look() for _ in range(6)] == once
    looks = Looks(dryRun=True)
    assert ([looks.look() for _ in range(6)], looks.why) == (once, "DryRun")
    looks = Looks(schedule=[PEAK])
    looks.epoch_s = EIGHT_O_CLOCK + 1700
    assert ([looks.look() for _ in range(6)], looks.why) == (once, "PeakNear")
    assert looks.entry.due
    assert (looks.look(0), looks.why) == (True, "")  # somebody asks
    assert looks.look(0) is False


def test_an_inconclusive_canary_keeps_it_up_until_a_person_has_decided() -> None:
    looks = Looks()
    looks.resource["status"]["conditions"][1]["reason"] = "CanaryInconclusive"
    assert [looks.look() for _ in range(5)][3:] == [True, False]
    assert looks.why == "CanaryInconclusive"
    looks.resource["status"]["conditions"][1]["reason"] = "CanaryFailed"
    assert (looks.look(), looks.why) == (True, "")


def test_status_is_to_say_so_when_routers_cannot_tell() -> None:
    looks = Looks()
    states = [{"held": 0}]

    def look() -> bool:
        looks.now_s += 10
        return zero_watch.look(
            ("ns", "chat"), looks.entry, looks.plan, sort_pods(looks.pods), states, looks.resource, looks.now_s, 0.0,
            resting=False,
        )  # fmt: skip

    assert [look(), look()] == [True, False]


def test_a_request_that_is_held_wakes() -> None:
    looks = Looks()
    assert looks.look(resting=True) is False
    assert (looks.look(0, held=1, resting=True), looks.entry.wake) == (True, True)
    # It is told until it is carried out.
    assert looks.look(resting=True) is True


@pytest.mark.parametrize(
    ("taken_s", "peak", "expected"),
    [
        ({}, PEAK, False),
        ({"x": 1900.0}, PEAK, True),
        ({"x": 1900.0}, PEAK | {"prefill": 0, "decode": 0}, False),
        ({"x": 60.0}, PEAK, False),
    ],
)
def test_a_peak_wakes_a_cold_start_before_it(taken_s: dict[str, float], peak: Any, expected: bool) -> None:
    looks = Looks(schedule=[peak])
    looks.epoch_s = EIGHT_O_CLOCK
    looks.entry.starts = {"prefill": Starts(), "decode": Starts(taken_s)}
    assert looks.look(resting=True) is expected


def test_what_may_not_go_to_zero_has_nothing_to_do() -> None:
    for change in ({"scaleToZero": None}, {}):
        looks = Looks(**change)
        if not change:
            looks.plan = accept(good(**POOLS, suspend=True, scaling={"scaleToZero": {}})).scaling
        assert not any(looks.look(held=1, resting=True) for _ in range(9))
