"""The facts about pods are read off them, whatever is missing."""

from __future__ import annotations

import math
from typing import Any

import pytest

from disagg_operator.autoscaling.policy.observation import Pods
from disagg_operator.autoscaling.signals import pod_facts
from disagg_operator.kube.pods import epoch_s


def pod(uid: str, created: str, ready: str | None = None, **more: Any) -> dict[str, Any]:
    conditions = [] if ready is None else [{"type": "Ready", "status": "True", "lastTransitionTime": ready}]
    return {
        "metadata": {"name": uid, "uid": uid, "creationTimestamp": created, **more},
        "status": {"conditions": conditions},
    }


def test_pods_are_ready_starting_or_draining() -> None:
    now_s = epoch_s("2026-01-01T00:02:00Z")
    pods = [
        pod("a", "2026-01-01T00:00:00Z", "2026-01-01T00:00:40Z"),
        pod("b", "2026-01-01T00:01:30Z"),
        pod("c", "2026-01-01T00:00:00Z", "2026-01-01T00:00:20Z", deletionTimestamp="2026-01-01T00:01:59Z"),
        {**pod("d", "2026-01-01T00:00:00Z"), "status": {"phase": "Failed"}},
    ]
    starts = pod_facts.note_starts(pod_facts.Starts(), pods)
    assert pod_facts.facts(pods, 3, now_s, starts) == Pods(3, 1, (30.0,), 1, 40.0)


def test_a_start_is_measured_once_and_the_last_sixteen_count() -> None:
    starts = pod_facts.note_starts(pod_facts.Starts(), [pod("a", "2026-01-01T00:00:00Z", "2026-01-01T00:00:40Z")])
    # It lost its readiness later, which is not a start.
    assert pod_facts.note_starts(starts, [pod("a", "2026-01-01T00:00:00Z", "2026-01-01T01:00:00Z")]) == starts
    for i in range(20):
        starts = pod_facts.note_starts(starts, [pod(f"p{i}", "2026-01-01T00:00:00Z", f"2026-01-01T00:00:{i + 10}Z")])
    assert len(starts.taken_s) == 16
    assert starts.mean_s == pytest.approx(sum(range(14, 30)) / 16)
    assert math.isnan(pod_facts.Starts().mean_s)


def test_a_start_that_is_no_start_is_not_counted() -> None:
    never = pod_facts.Starts()
    for found in (
        pod("a", "2026-01-01T00:00:00Z"),  # not ready
        pod("a", "2026-01-01T00:00:40Z", "2026-01-01T00:00:00Z"),  # ready before it was created
        pod("a", "2026-01-01T00:00:00Z", "2026-01-01T03:00:00Z"),  # ready three hours later
        pod("a", "yesterday", "2026-01-01T00:00:00Z"),
        {**pod("a", "2026-01-01T00:00:00Z", "2026-01-01T00:00:40Z"), "metadata": {"name": "a", "uid": "a"}},
    ):
        assert pod_facts.note_starts(never, [found]) == never
    restarted = pod("a", "2026-01-01T00:00:00Z", "2026-01-01T00:00:40Z")
    restarted["status"]["containerStatuses"] = [{"restartCount": 0}, {"restartCount": 2}]
    assert pod_facts.note_starts(never, [restarted]) == never


def test_a_start_within_a_second_took_half_of_one() -> None:
    found = pod_facts.note_starts(pod_facts.Starts(), [pod("a", "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z")])
    assert found.mean_s == 0.5


def test_a_pod_of_unknown_age_counts_as_new_and_the_oldest_come_first() -> None:
    now_s = epoch_s("2026-01-01T00:02:00Z")
    pods = [
        pod("a", "soon"), pod("b", "2026-01-01T00:03:00Z"), pod("c", "2026-01-01T00:01:00Z"),
        {"metadata": {"name": "d"}, "status": None},
    ]  # fmt: skip
    assert pod_facts.facts(pods, 4, now_s, pod_facts.Starts()).starting_ages_s == (60.0, 0.0, 0.0, 0.0)


def test_pods_for_which_there_is_no_node_are_known() -> None:
    now_s = epoch_s("2026-01-01T00:02:00Z")
    waits, placed, ready = (pod(name, "2026-01-01T00:00:30Z") for name in ("a", "b", "c"))
    for found, reason in ((waits, "Unschedulable"), (placed, "SchedulingGated")):
        found["status"] = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": reason}]}
    ready["status"] = {"conditions": [{"type": "Ready", "status": "True"}]}
    facts = pod_facts.facts([waits, placed, ready], 3, now_s, pod_facts.Starts())
    assert (facts.starting_ages_s, facts.unplaced_s) == ((90.0, 90.0), (90.0,))


@pytest.mark.parametrize("created", ["2026-01-01T01:00:00Z", "2025-12-31T23:00:00Z", "2026-01-01T00:00:00Z"])
def test_the_clocks_of_other_machines_make_no_pod_old_or_young(created: str) -> None:
    begun_s = epoch_s("2026-01-01T00:00:00Z")
    found = [pod("a", created)]
    starts = pod_facts.note_seen(pod_facts.Starts(), found, begun_s)
    assert pod_facts.facts(found, 1, begun_s, starts).starting_ages_s == (0.0,)
    starts = pod_facts.note_seen(starts, found, begun_s + 700)
    assert pod_facts.facts(found, 1, begun_s + 700, starts).starting_ages_s == (700.0,)
    assert pod_facts.note_seen(starts, [], begun_s + 700).seen_s == {}


@pytest.mark.parametrize(
    ("ready", "taken_s"),
    [
        pytest.param("2026-01-01T00:00:40Z", 40.0, id="clocks that agree are more exact than we are"),
        pytest.param("2026-01-01T01:00:40Z", math.nan, id="a node that is an hour ahead"),
        pytest.param("2025-12-31T23:00:40Z", math.nan, id="a node that is an hour behind"),
    ],
)
def test_a_start_does_not_count_if_our_own_clock_says_otherwise(ready: str, taken_s: float) -> None:
    begun_s, created = epoch_s("2026-01-01T00:00:00Z"), "2026-01-01T00:00:00Z"
    starts = pod_facts.note_seen(pod_facts.Starts(), [pod("a", created)], begun_s)
    starts = pod_facts.note_starts(starts, [pod("a", created, ready)], begun_s + 45)
    assert starts.mean_s == pytest.approx(taken_s, nan_ok=True)


def test_a_pod_that_was_ready_when_it_was_first_seen_is_measured_by_its_own_times() -> None:
    found = [pod("a", "2026-01-01T00:00:00Z", "2026-01-01T00:00:40Z")]
    now_s = epoch_s("2026-01-01T09:00:00Z")
    seen = pod_facts.note_seen(pod_facts.Starts(), found, now_s)
    assert pod_facts.note_starts(seen, found, now_s).mean_s == 40.0
