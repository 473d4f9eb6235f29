"""Tests of when a prompt or its KV takes so long that it is tried elsewhere."""

from __future__ import annotations

import pytest

from disagg_router.dispatch.retry_budget import RetryBudget
from disagg_router.dispatch.tail_times import Stage, Tails, TailTimes


def test_the_slowest_twentieth_of_prompts_of_that_length_gives_the_limit() -> None:
    times = TailTimes(factor=1.5, least_s=0.5)
    for i in range(19):
        times.note(100, i / 10)
    assert times.limit_s(100) is None
    times.note(100, 9.0)
    assert times.limit_s(100) == pytest.approx(13.5)
    times.note(100, 0.1)
    assert times.limit_s(100) == pytest.approx(1.5 * 1.8)
    assert times.limit_s(100) == times.limit_s(127)
    assert times.limit_s(128) is None
    for _ in range(128):
        times.note(100, 0.001)
    assert times.limit_s(100) == 0.5


def _tails(prompt_s: float = 1.0, link_s: float = 1.0, burst: float = 1.0) -> Tails:
    tails = Tails(budget=RetryBudget(share=0.0, least_per_s=0.0, burst=burst))
    for _ in range(20):
        tails.prompts.note(64, prompt_s)
        tails.links.note(100, link_s)
    return tails


def test_an_attempt_is_late_with_its_prompt_and_then_with_its_kv() -> None:
    stage = Stage(_tails(), 64, 100)
    stage.first_token(0.5)  # Of a worker that prefills alone.
    stage.accepted(0.5)
    assert stage.limit_at_s is None
    assert not stage.is_late(1e9)
    stage.ticket(10.0)
    assert stage.prefills
    assert (stage.is_late(11.4), stage.is_late(11.5)) == (False, True)
    stage.first_token(11.0)
    assert not stage.prefills
    assert (stage.is_late(13.9), stage.is_late(14.0)) == (False, True)
    stage.first_token(12.0)  # Decode's, later.
    assert stage.limit_at_s == 14.0
    stage.accepted(12.0)
    assert stage.limit_at_s is None


def test_what_is_late_is_given_up_if_there_is_another_place_and_the_budget_allows_it() -> None:
    tails = _tails(burst=1.0)
    for elsewhere, given_up in ((False, False), (True, True), (True, False)):
        stage = Stage(tails, 64, 100)
        stage.ticket(0.0)
        assert stage.is_late(4.0)
        limit_s = stage.limit_at_s or 0.0
        assert stage.give_up(2.0, elsewhere=elsewhere) is given_up
        assert stage.limit_at_s == (None if given_up else 2 * limit_s)
        stage.first_token(9.0)
        stage.accepted(9.0)
    # The three that were late count once, with the time that they had, and the limit rises.
    assert tails.prompts.limit_s(64) == pytest.approx(3.0)


def test_without_enough_times_nothing_is_late() -> None:
    stage = Stage(Tails(), 64, 100)
    stage.ticket(0.0)
    assert stage.limit_at_s is None
    stage.first_token(1.0)
    assert not stage.is_late(1e9)


def test_without_a_limit_there_is_none_to_double() -> None:
    stage = Stage(Tails(), 64, 100)
    stage.ticket(0.0)
    assert not stage.give_up(1.0, elsewhere=False)
    assert stage.limit_at_s is None


def test_a_length_that_is_rare_has_the_limit_of_the_next_longer_one() -> None:
    times = TailTimes(factor=2.0, least_s=0.5)
    for tokens, seconds in ((1024, 2.0), (64, 1.0)):
        assert times.limit_s(tokens) == (None if tokens == 1024 else 4.0)
        for _ in range(20):
            times.note(tokens, seconds)
    assert [times.limit_s(n) for n in (8, 64, 256, 1024, 4096)] == [2.0, 2.0, 4.0, 4.0, None]


def test_what_is_known_to_be_slow_costs_no_budget() -> None:
    tails = _tails(burst=1.0)
    stages = [Stage(tails, 64, 100) for _ in range(3)]
    for stage, known, given_up in zip(stages, (False, True, False), (True, True, False), strict=True):
        stage.ticket(0.0)
        assert stage.give_up(2.0, elsewhere=True, known=known) is given_up
    assert not stages[2].give_up(9.0, elsewhere=False, known=True)
