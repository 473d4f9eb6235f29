"""Tests of how long a link was in use."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.transfer.busy_time import BusyTime


def test_what_overlaps_counts_once() -> None:
    busy = BusyTime()
    assert busy.note(5.0, 6.0) == 1.0
    assert busy.note(8.0, 9.0) == 1.0
    assert busy.note(0.0, 10.0) == 8.0
    assert busy.note(9.5, 10.5) == 0.5
    assert busy.note(12.0, 11.0) == 0.0


def test_old_intervals_are_forgotten() -> None:
    busy = BusyTime()
    for second in range(200):
        busy.note(second, second + 0.5)
    assert busy.note(0.0, 200.0) == pytest.approx(200 - 64 * 0.5)


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=30))
def test_the_sum_is_the_union(spans: list[tuple[int, int]]) -> None:
    busy = BusyTime()
    total_s = sum(busy.note(float(start), float(start + length)) for start, length in spans)
    seconds = {second for start, length in spans for second in range(start, start + length)}
    assert total_s == len(seconds)
