"""Tests of the learned duration of batches: the line is found, a single slow batch changes nothing,
and old batches are forgotten.
"""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.engine.prefill_pace import UNKNOWN, Pace, PaceMeter

SIZES = [10, 100, 700, 1500]


def _after(*batches: tuple[int, float]) -> Pace:
    meter = PaceMeter()
    for tokens, seconds in batches:
        meter.note(tokens, seconds)
    return meter.pace()


@pytest.mark.parametrize("batches", [[], [(1, 9.0)], [(100, 9.0), (100, 0.01)], [(n, 1.0) for n in SIZES]])
def test_what_is_not_known_takes_no_time(batches: list[tuple[int, float]]) -> None:
    assert _after(*batches) == UNKNOWN
    assert UNKNOWN.alone_s(10_000, 100) == 0.0


def test_of_one_size_nothing_is_believed_to_take_longer_than_it_did() -> None:
    pace = _after(*[(100, 0.2)] * 3)
    assert [pace.batch_s(n) for n in (50, 100, 2000)] == pytest.approx([0.1, 0.2, 0.2])


times = st.floats(1e-4, 1.0)


@given(
    st.floats(0, 1),
    st.floats(1e-5, 0.01),
    st.permutations(SIZES * 5),
    st.lists(st.floats(0.0, 100.0), min_size=8, max_size=8),
)
def test_the_line_is_found_though_two_of_five_batches_of_each_size_were_slow(
    fixed_s: float, token_s: float, order: list[int], slow_s: list[float]
) -> None:
    seen: dict[int, int] = {}
    meter = PaceMeter()
    for n in order:
        seen[n] = seen.get(n, 0) + 1
        meter.note(n, fixed_s + token_s * n + (slow_s.pop() if seen[n] in (1, 4) else 0.0))
    pace = meter.pace()
    assert [pace.batch_s(n) for n in (1, 64, 2048)] == pytest.approx(
        [fixed_s + token_s * n for n in (1, 64, 2048)], rel=1e-3, abs=1e-6
    )


@given(
    st.lists(st.tuples(st.integers(1, 4096), st.floats(0, 1000)), max_size=60),
    st.integers(0, 5000),
    st.integers(0, 5000),
)
def test_whatever_was_measured_more_tokens_never_take_less(batches: list[tuple[int, float]], a: int, b: int) -> None:
    pace = _after(*batches)
    assert min(pace.fixed_s, pace.token_s) >= 0
    assert 0.0 <= pace.batch_s(min(a, b)) <= pace.batch_s(max(a, b)) < inf
    assert pace.alone_s(min(a, b), 100) <= pace.alone_s(max(a, b), 100) * (1 + 1e-9)


def test_a_machine_that_became_slower_is_known_after_a_few_batches() -> None:
    fast, slow = [(n, 1e-4 * n) for n in SIZES] * 20, [(n, 1e-3 * n) for n in SIZES] * 3
    assert _after(*fast).batch_s(1000) == pytest.approx(0.1)
    assert _after(*fast, *slow).batch_s(1000) == pytest.approx(1.0)


def test_a_size_that_was_not_computed_for_long_does_not_count() -> None:
    old, new = [(100, 0.055)] * 5, [(10, 0.01)] * 490
    assert _after(*old, *new).batch_s(100) == pytest.approx(0.055)
    assert _after(*old, *new, *new[:10]).batch_s(100) == pytest.approx(0.01)


def test_a_prompt_alone_takes_its_chunks_and_what_is_done_between_them() -> None:
    pace = Pace(0.1, 0.001, between_s=0.02)
    assert pace.alone_s(0, 100) == 0.0
    assert pace.alone_s(100, 100) == pytest.approx(0.2)
    assert pace.alone_s(250, 100) == pytest.approx(0.2 + 0.02 + 0.2 + 0.02 + 0.15)


def test_what_is_done_between_batches_is_said_with_each_question() -> None:
    meter = PaceMeter()
    for n in SIZES * 3:
        meter.note(n, 0.1 + 0.001 * n)
    assert (meter.pace(0.5).between_s, meter.pace().between_s) == (0.5, 0.0)
    assert meter.pace(0.5).batch_s(100) == meter.pace().batch_s(100) == pytest.approx(0.2)
