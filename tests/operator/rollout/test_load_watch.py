"""Workers get on while they have loaded more than ever before."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st
from tests.operator.rollout.test_planner import OLD, ONE, starting, state

from disagg_operator.rollout.load_watch import LoadWatch, PodLoad
from disagg_operator.rollout.planner import plan

KEY = ("prefill", "new")


def at(watch: LoadWatch, now_s: float, *pods: int | None) -> float | None:
    """Note what pods have loaded, None for one that is ready, and return when they last moved."""
    watch.look({KEY: [PodLoad(n is None, n or 0) for n in pods]}, now_s)
    return watch.moved_s([KEY])


def test_more_bytes_are_progress_and_the_same_again_are_none() -> None:
    watch = LoadWatch()
    assert at(watch, 1.0) is None
    assert at(watch, 2.0, 0, 0) is None
    assert at(watch, 3.0, 5, 0) == 3.0
    assert at(watch, 4.0, 5, 5) == 4.0
    assert at(watch, 5.0, 0, 5) == 4.0  # one is restarted
    assert at(watch, 6.0, 5, 5) == 4.0
    assert at(watch, 7.0, 5, 6) == 7.0
    assert at(watch, 8.0, None, 6) == 8.0
    assert at(watch, 9.0, None, None) == 8.0
    assert at(watch, 10.0, None, None, 1) == 10.0  # another one begins
    assert at(watch, 11.0, None, None) == 10.0
    assert watch.moved_s([("decode", "new")]) is None
    assert watch.moved_s([KEY, ("decode", "new")]) == 10.0


def test_only_the_last_groups_are_remembered() -> None:
    watch = LoadWatch()
    for n in range(40):
        watch.look({("prefill", str(n)): [PodLoad(ready=False, loaded_bytes=1)]}, float(n))
    known = [n for n in range(40) if watch.moved_s([("prefill", str(n))]) is not None]
    assert known == [*range(24, 40)]


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=3), max_size=60))
def test_workers_that_only_repeat_get_on_no_more_often_than_there_are_bytes(looks: list[list[int]]) -> None:
    watch = LoadWatch()
    moves = {at(watch, float(now), *pods) for now, pods in enumerate(looks)} - {None}
    assert len(moves) <= 27


def test_what_a_worker_has_loaded_moves_the_deadline_and_no_step_is_counted() -> None:
    old, new = OLD, (starting("prefill", "new", 1), starting("decode", "new", 1))
    rules = replace(ONE, deadline_s=100.0)
    first = plan(state(*old, *new, now_s=10.0), rules)
    moved = replace(state(*old, *new, now_s=150.0), progress=first.progress, moved_s=60.0)
    on = plan(moved, rules)
    assert (on.expired, on.wake_s, on.progress) == (False, 10.0, first.progress)
    assert plan(replace(moved, moved_s=49.0), rules).expired
    assert plan(replace(moved, moved_s=None), rules).expired
