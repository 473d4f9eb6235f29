"""How long a rollout has waited is what this process has seen, whatever wall clocks say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from disagg_operator.rollout.steady_times import SteadyTimes, progress_of, progress_status
from disagg_operator.rollout.values import Progress, RolloutState, Workers

HOUR_S = 3600.0
STORED = Progress("r2", 3, 1000.0, {"gpu": 4}, frozenset({"gpu"}))


def state(now_s: float, room_since_s: float | None = None, progress: Progress | None = None) -> RolloutState:
    workers = Workers("decode", "r2", 1, existing=1, unscheduled=1, unschedulable_since_s=room_since_s)
    return RolloutState((workers,), {}, {}, now_s=now_s, progress=progress)


@pytest.mark.parametrize("skew_s", [-HOUR_S, 0.0, HOUR_S])
def test_a_pod_waits_for_as_long_as_it_is_seen_to_wait(skew_s: float) -> None:
    """The scheduler's clock is that of another machine."""
    times = SteadyTimes()
    for later_s, age_s in ((0.0, 0.0), (30.0, 30.0), (60.0, 60.0)):
        (found,) = times.by_this_process(state(5000.0 + later_s, 5000.0 + skew_s), 7.0 + later_s).workers
        assert found.unschedulable_since_s == 5000.0 + later_s - age_s
    # Another pod waits since another time; then none does.
    (found,) = times.by_this_process(state(5060.0, 5050.0 + skew_s), 67.0).workers
    assert found.unschedulable_since_s == 5060.0
    (found,) = times.by_this_process(state(5061.0), 68.0).workers
    assert found.unschedulable_since_s is None
    (found,) = times.by_this_process(state(5062.0, 5050.0 + skew_s), 69.0).workers
    assert found.unschedulable_since_s == 5062.0


def test_progress_is_as_old_as_it_is_seen_to_be_and_keeps_its_time_in_status() -> None:
    times = SteadyTimes()
    for jump_s, later_s in ((0.0, 0.0), (HOUR_S, 10.0), (-HOUR_S, 20.0)):
        seen = times.by_this_process(state(1000.0 + later_s + jump_s, None, STORED), 50.0 + later_s)
        assert seen.progress is not None
        assert seen.now_s - seen.progress.since_s == later_s
        assert times.to_store(STORED, seen.progress, seen.progress, 50.0 + later_s) == STORED
        changed = replace(seen.progress, held={"gpu": 5})
        assert times.to_store(STORED, seen.progress, changed, 50.0 + later_s) == replace(STORED, held={"gpu": 5})
    # Another process counts from zero.
    other = SteadyTimes().by_this_process(state(9000.0, None, STORED), 3.0)
    assert other.progress == replace(STORED, since_s=9000.0)


def test_a_step_counts_from_when_it_is_made() -> None:
    times = SteadyTimes()
    seen = times.by_this_process(state(1000.0, None, STORED), 50.0)
    made = Progress("r2", 4, 1000.0)
    assert times.to_store(STORED, seen.progress, made, 50.0) == made
    again = times.by_this_process(state(1000.0, None, made), 75.0)
    assert again.progress == replace(made, since_s=975.0)
    assert times.to_store(None, None, made, 75.0) == made
    assert times.to_store(STORED, seen.progress, None, 75.0) is None


def test_a_canary_is_tried_for_as_long_as_it_is_seen_to_be() -> None:
    times, since = SteadyTimes(), "2026-01-01T00:00:00Z"
    assert times.tried_for_s(since, since, 50.0) == 0.0
    for jumped in ("2026-01-01T09:00:00Z", "2025-12-31T12:00:00Z"):
        assert times.tried_for_s(since, jumped, 80.0) == 30.0
    # Another process begins with the time between two wall clocks.
    assert SteadyTimes().tried_for_s(since, "2026-01-01T00:10:00Z", 7.0) == 600.0
    assert SteadyTimes().tried_for_s(since, "2025-12-31T12:00:00Z", 7.0) == 0.0
    # One that begins anew counts from then on.
    assert times.tried_for_s("2026-01-01T01:00:00Z", "2026-01-01T01:00:05Z", 100.0) == 5.0


@pytest.mark.parametrize("rollout", [None, [], {}, {"lastProgressTime": "soon"}])
def test_what_makes_no_sense_in_a_status_is_no_progress(rollout: Any) -> None:
    assert progress_of({"status": {"rollout": rollout}}) is None


def test_progress_is_read_as_it_was_written() -> None:
    assert progress_of({"status": {"rollout": progress_status(STORED)}}) == STORED
    assert progress_of({}) is None
    assert progress_status(None) is None
