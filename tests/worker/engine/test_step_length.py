"""Tests of the announced lengths of steps."""

from __future__ import annotations

import pytest

from disagg_worker.engine.step_length import UNKNOWN_S, StepLengths, prefill_size
from disagg_worker.engine.step_watch import StepWatch


def test_a_size_that_was_never_computed_may_compile() -> None:
    lengths = StepLengths(compiles=True)
    assert lengths.expected_s("decode", 4) == UNKNOWN_S
    lengths.note("decode", 4, 0.1)
    assert lengths.expected_s("decode", 4) == pytest.approx(0.1)
    assert lengths.expected_s("decode", 7) == pytest.approx(0.175)  # of the same group
    assert lengths.expected_s("decode", 8) == UNKNOWN_S
    assert lengths.expected_s("prefill", 4) == UNKNOWN_S


def test_where_nothing_is_compiled_sizes_learn_from_their_neighbours() -> None:
    lengths = StepLengths(compiles=False)
    assert lengths.expected_s("decode", 4) == UNKNOWN_S
    lengths.note("decode", 4, 0.1)
    assert lengths.expected_s("decode", 40) == pytest.approx(1.0)
    assert lengths.expected_s("decode", 1) == pytest.approx(0.1)
    lengths.note("decode", 16, 0.2)
    assert lengths.expected_s("decode", 40) == pytest.approx(0.5)
    assert lengths.expected_s("decode", 9) == pytest.approx(0.225)
    assert lengths.expected_s("prefill", 4) == UNKNOWN_S


def test_one_slow_step_counts_for_nothing_and_two_do() -> None:
    lengths = StepLengths(compiles=True)
    for seconds in (9.0, 0.1, 0.12, 0.1):
        lengths.note("decode", 1, seconds)
    assert lengths.expected_s("decode", 1) == pytest.approx(0.12)
    lengths.note("decode", 1, 5.0)
    assert lengths.expected_s("decode", 1) == pytest.approx(5.0)
    for _ in range(16):
        lengths.note("decode", 1, 0.1)
    assert lengths.expected_s("decode", 1) == pytest.approx(0.1)


def test_tokens_behind_many_others_take_longer() -> None:
    assert prefill_size([]) == 0
    alone = prefill_size([(512, 0)])
    assert 512 < alone < 700
    assert prefill_size([(512, 0), (512, 0)]) == 2 * alone
    assert prefill_size([(512, 102_400)]) == pytest.approx(100 * 512 + alone)


class _Record:
    def __init__(self) -> None:
        self.said: list[float | None] = []

    def begins(self, expected_s: float) -> None:
        self.said.append(expected_s)

    def ends(self) -> None:
        self.said.append(None)


def test_each_step_is_announced_and_its_end_too_even_if_it_fails() -> None:
    record = _Record()
    watch = StepWatch(record)
    with pytest.raises(ArithmeticError), watch.prefill([(4, 0)]):
        raise ArithmeticError
    with watch.decode(1):
        assert watch.is_late(-UNKNOWN_S * 3)
        assert not watch.is_late(0.0)
    assert record.said == [UNKNOWN_S, None, UNKNOWN_S, None]
    assert not watch.is_late(-1e9)
    with StepWatch().decode(1):
        pass
