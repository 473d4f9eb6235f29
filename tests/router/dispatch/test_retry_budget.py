"""Tests of the budget of retries."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from disagg_router.dispatch.retry_budget import RetryBudget


def test_a_burst_goes_at_once_and_the_rest_waits_for_its_turn() -> None:
    budget = RetryBudget(share=0.2, least_per_s=2.0, burst=3.0)
    assert [budget.wait_s(0.0) for _ in range(5)] == [0.0, 0.0, 0.0, 0.5, 1.0]
    assert budget.wait_s(10.0) == 0.0


def test_much_traffic_allows_more() -> None:
    budget = RetryBudget(share=0.2, least_per_s=0.0, burst=0.0)
    for i in range(1000):
        budget.arrived(i / 100)
    waits = [budget.wait_s(10.0) for _ in range(40)]
    assert 1.9 < waits[-1] < 2.1
    assert RetryBudget(share=0.0, least_per_s=1.0, burst=0.0).wait_s(0.0) == 1.0


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=200))
def test_never_more_than_the_share_the_least_and_the_burst(steps: list[tuple[float, bool]]) -> None:
    budget, now_s, times, arrivals = RetryBudget(0.2, 2.0, 5.0), 0.0, list[float](), 0
    for gap_s, arrives in steps:
        now_s += gap_s
        if arrives:
            budget.arrived(now_s)
            arrivals += 1
        else:
            times.append(now_s + budget.wait_s(now_s))
    over = [t for t in times if t <= now_s]
    assert len(over) <= 5.0 + (2.0 + 0.2 * arrivals / 10) * now_s + 1.0


def test_a_place_that_is_not_there_is_not_waited_for() -> None:
    budget = RetryBudget(share=0.0, least_per_s=1.0, burst=2.0)
    assert [budget.spare(0.0) for _ in range(3)] == [True, True, False]
    assert [budget.spare(1.0) for _ in range(2)] == [True, False]
    assert budget.wait_s(1.0) == 1.0


def test_requests_of_long_ago_allow_nothing_any_more() -> None:
    budget = RetryBudget(share=0.2, least_per_s=1.0, burst=0.0)
    for _ in range(1000):
        budget.arrived(0.0)
    assert budget.wait_s(1000.0) == 1.0


def test_a_place_that_is_given_back_is_there_for_others_and_never_more_than_the_burst() -> None:
    budget = RetryBudget(share=0.0, least_per_s=1.0, burst=2.0)
    waits = [budget.wait_s(0.0) for _ in range(4)]
    assert waits == [0.0, 0.0, 1.0, 2.0]
    assert budget.left(0.0) == -2.0
    for _ in range(2):
        budget.give_back()
    assert budget.wait_s(0.0) == 1.0
    for _ in range(9):
        budget.give_back()
    assert budget.left(0.0) == 2.0
