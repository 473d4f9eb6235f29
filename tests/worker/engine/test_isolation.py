"""Tests of steps that fail because of some of their requests."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.engine.isolation import Isolated, isolated


def run(items: list[int], bad: set[int], most: int) -> tuple[Isolated[int, int], int]:
    """Compute items of which some are to blame; memory suffices for `most` at once."""
    steps = 0

    def compute(part: list[int]) -> list[int]:
        nonlocal steps
        steps += 1
        if len(part) > most:
            raise MemoryError
        if bad & set(part):
            raise ValueError(part)
        return [10 * item for item in part]

    return isolated(items, compute, max, lambda error: isinstance(error, MemoryError)), steps


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_exactly_those_that_are_to_blame_are_lost(n: int, bad: set[int]) -> None:
    found, steps = run(list(range(n)), bad, n)
    assert found.done == [i for i in range(n) if i not in bad]
    assert found.outcomes == [10 * i for i in found.done]
    assert [item for item, _ in found.lost] == [i for i in range(n) if i in bad]
    assert steps <= 2 * n - 1


@given(st.integers(1, 256), st.data())
def test_one_of_many_is_found_in_few_steps(n: int, data: st.DataObject) -> None:
    _, steps = run(list(range(n)), {data.draw(st.integers(0, n - 1))}, n)
    assert steps <= 1 + 2 * math.ceil(math.log2(n))


@given(st.integers(1, 40), st.integers(1, 40))
def test_where_memory_runs_out_the_newest_go_one_by_one(n: int, most: int) -> None:
    found, _ = run(list(range(n)), set(), most)
    assert found.done == list(range(min(n, most)))
    assert [item for item, _ in found.lost] == list(range(n - 1, most - 1, -1))


def test_memory_that_does_not_suffice_for_one_ends_it() -> None:
    found, _ = run([1, 2], set(), 0)
    assert (found.done, [item for item, _ in found.lost]) == ([], [2, 1])
