"""Who goes when a workload becomes smaller: exactly the pods that its ReplicaSet deletes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.controller import victims
from disagg_operator.kube.pods import DRAIN_UNTIL

NOW = 1_767_225_600.0  # 2026-01-01
SOON = "2026-01-01T00:01:00Z"
COST = "controller.kubernetes.io/pod-deletion-cost"


def pod(
    name: str, *, ready: bool = True, until: str | None = None, phase: str = "Running", node: str = "n", **meta: Any
) -> dict[str, Any]:
    annotations = {} if until is None else {DRAIN_UNTIL: until, COST: "-1000000"}
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "annotations": annotations, **meta},
        "spec": {"nodeName": node} if node else {},
        "status": {"phase": phase, "podIP": "10.0.0.1",
                   "conditions": [{"type": "Ready", "status": "True" if ready else "False"}]},
    }  # fmt: skip


def names(pods: tuple[dict[str, Any], ...]) -> list[str]:
    return [p["metadata"]["name"] for p in pods]


@pytest.mark.parametrize(
    ("pods", "wanted", "loads", "going", "called_back"),
    [
        ([pod("a"), pod("b"), pod("c")], 3, {}, [], []),
        ([pod("a"), pod("b"), pod("c")], 4, {}, [], []),
        ([pod("a"), pod("b"), pod("c")], 2, {"a": 2.0, "b": 1.0, "c": 3.0}, ["b"], []),
        # Of an unknown load is thought the worst.
        ([pod("a"), pod("b")], 1, {"a": 5.0}, ["a"], []),
        ([pod("a"), pod("b")], 1, {"b": 5.0, "a": 6.0}, ["b"], []),
        # Whoever drains goes on with it, whatever the load.
        ([pod("a"), pod("b", until=SOON)], 1, {"a": 0.0, "b": 9.0}, ["b"], []),
        ([pod("a", until=SOON), pod("b", until=SOON)], 1, {"a": 2.0, "b": 1.0}, ["b"], ["a"]),
        ([pod("a", until=SOON), pod("b")], 2, {}, [], ["a"]),
        # The ReplicaSet deletes what is not ready before anything else.
        ([pod("a", until=SOON), pod("b", ready=False)], 1, {}, ["b"], ["a"]),
        ([pod("a", ready=False), pod("b", ready=False, phase="Pending")], 1, {}, ["b"], []),
        ([pod("a", ready=False, phase="Pending"), pod("b", ready=False, phase="Pending", node="")], 1, {}, ["b"], []),
        # What terminates is gone already.
        ([pod("a", deletionTimestamp=SOON), pod("b"), pod("c")], 2, {}, [], []),
        ([pod("a", until=SOON), pod("b")], 0, {}, ["a", "b"], []),
    ],
)
def test_victims(
    pods: list[dict[str, Any]], wanted: int, loads: dict[str, float], going: list[str], called_back: list[str]
) -> None:
    found = victims.chosen(pods, wanted, loads)
    assert (names(found.going), names(found.called_back)) == (going, called_back)


def test_a_mark_has_a_deadline_and_the_lowest_cost_and_is_written_once() -> None:
    written = victims.mark(pod("a"), 60.0, NOW)
    assert written == {DRAIN_UNTIL: SOON, COST: "-1000000"}
    assert victims.mark(pod("a", until=SOON), 60.0, NOW) == {}
    free = pod("a", until=SOON)
    free["metadata"]["annotations"][COST] = "-2000000"
    assert victims.mark(pod("a", until=SOON), 60.0, NOW + 1000) == {COST: "-2000000"}  # its time is over
    assert victims.mark(pod("a", until=SOON), 60.0, NOW, idle=True) == {COST: "-2000000"}
    assert victims.mark(pod("a"), 60.0, NOW, idle=True) == written | {COST: "-2000000"}
    assert victims.mark(free, 60.0, NOW, idle=True) == victims.mark(free, 60.0, NOW) == {}
    assert victims.mark(pod("a", until="2027-01-01T00:00:00Z"), 60.0, NOW) == written  # of a clock that was wrong
    assert victims.mark(pod("a", until="tomorrow"), 60.0, NOW) == written
    assert victims.unmark() == {DRAIN_UNTIL: None, COST: None}


@pytest.mark.parametrize(
    ("found", "said", "after_s", "waits"),
    [
        (pod("a", until=SOON), "busy", 0.0, True),
        (pod("a", until=SOON), "idle", 0.0, False),
        (pod("a", until=SOON), "unable", 0.0, False),
        (pod("a", until=SOON), "busy", 60.0, False),
        (pod("a", until=SOON, ready=False), "busy", 0.0, False),
        (pod("a", until="tomorrow"), "busy", 0.0, False),
        (pod("a"), "busy", 0.0, False),
    ],
)
def test_who_is_waited_for(found: dict[str, Any], said: str, after_s: float, waits: bool) -> None:
    assert victims.waiting([found], {"uid-a": said}, NOW + after_s) == ([found] if waits else [])
    assert victims.waiting([found], {}, NOW) == []


def test_only_a_pod_that_serves_at_an_address_can_drain() -> None:
    assert victims.can_drain(pod("a"))
    assert not victims.can_drain(pod("a", ready=False))
    assert not victims.can_drain(pod("a") | {"status": {"conditions": [{"type": "Ready", "status": "True"}]}})


def test_pods_that_go_without_a_mark_need_a_price() -> None:
    assert victims.need_a_price([pod("a"), pod("b", until=SOON)])
    assert victims.need_a_price([])
    assert not victims.need_a_price([pod("b", until=SOON)])


PODS = st.lists(
    st.tuples(
        st.booleans(), st.booleans(), st.sampled_from(["Running", "Pending", "Unknown"]), st.booleans(), st.booleans()
    ),
    max_size=8,
)


@given(PODS, st.integers(0, 8), st.integers(0, 8), st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 9)))
def test_any_pods(
    drawn: list[tuple[bool, bool, str, bool, bool]], wanted: int, later: int, loads: dict[str, float]
) -> None:
    pods = [
        pod("abcdefgh"[i], ready=ready, until=SOON if marked else None, phase=phase, node="n" if placed else "",
            **({"deletionTimestamp": SOON} if leaves else {}))
        for i, (ready, marked, phase, placed, leaves) in enumerate(drawn)
    ]  # fmt: skip
    found = victims.chosen(pods, wanted, loads)
    here = [p for p in pods if "deletionTimestamp" not in p["metadata"]]
    assert len(found.going) == max(0, len(here) - wanted)
    going, back = set(names(found.going)), set(names(found.called_back))
    assert not going & back
    assert back == {p["metadata"]["name"] for p in here if victims.is_marked(p)} - going  # no mark stays by itself
    # Whoever has been marked stays a victim of that size, and those of a larger one are among them.
    for p in found.going:
        p["metadata"]["annotations"] = {DRAIN_UNTIL: SOON}
    for p in found.called_back:
        p["metadata"]["annotations"] = {}
    assert set(names(victims.chosen(pods, wanted, {}).going)) == going
    fewer = set(names(victims.chosen(pods, max(wanted, later), {}).going))
    assert fewer <= going
