"""Tests of the evaluation of timed streams, without a server."""

from __future__ import annotations

import pytest

from disagg_operator.cli.measure import _together
from disagg_operator.cli.served_endpoint import Answer


def stream(begin_s: float, step_s: float, tokens: int, prompt: int = 10) -> Answer:
    return Answer(begin_s - 1.0, prompt, tokens, [begin_s + i * step_s for i in range(tokens)])


def test_the_step_of_streams_that_run_together() -> None:
    point = _together([stream(0.0, 0.01, 101), stream(0.2, 0.01, 81)], [])
    assert point is not None
    assert (point.sequences, point.step_s, point.joined) == pytest.approx((2, 0.01, 0))
    assert point.kv_tokens == pytest.approx(10 + 22 + 39.5 + 10 + 2 + 39.5, abs=1.5)


def test_short_requests_count_while_all_the_others_run() -> None:
    """Between 0.21 and 1.0 s there are 79 steps, in which two of the four short answers end."""
    short = [stream(at_s, 0.01, 2, prompt=79) for at_s in (0.05, 0.4, 0.6, 1.2)]
    point = _together([stream(0.0, 0.01, 101), stream(0.2, 0.01, 81)], short)
    assert point is not None
    assert point.joined == pytest.approx(2 / 79)
    assert point.sequences == pytest.approx(2 + 2 / 79)
    assert point.kv_tokens == pytest.approx(10 + 22 + 39.5 + 10 + 2 + 39.5 + 2, abs=1.5)


def test_streams_that_hardly_ran_together_say_nothing() -> None:
    assert _together([stream(0.0, 0.01, 30), stream(0.2, 0.01, 30)], []) is None
