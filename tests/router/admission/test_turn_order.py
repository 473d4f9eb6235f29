"""Tests of the order of waiting requests: tables, and sequences of events against the plain
definition.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.admission.turn_order import Ordered, Turn

PATIENCE_S = 20.0
# (description of the case, turns, now, their numbers in the order in which they go)
TABLE: list[tuple[str, list[Turn], float, list[int]]] = [
    ("the earliest deadline", [Turn(0, 0.0, 9.0), Turn(1, 1.0, 3.0), Turn(2, 2.0, 5.0)], 2.0, [1, 2, 0]),
    ("equal deadlines: by arrival", [Turn(0, 0.0, 4.0), Turn(1, 1.0, 4.0)], 2.0, [0, 1]),
    ("who is late goes last", [Turn(0, 0.0, 1.0), Turn(1, 1.0, 3.0)], 2.0, [1, 0]),
    ("at the deadline it is not late", [Turn(0, 0.0, 2.0), Turn(1, 1.0, 3.0)], 2.0, [0, 1]),
    ("late already when what it takes does not fit", [Turn(0, 0.0, 3.0, 1.5), Turn(1, 1.0, 4.0, 1.0)], 2.0, [1, 0]),
    ("those that are late: by arrival", [Turn(0, 0.0, 1.5), Turn(1, 0.5, 1.0), Turn(2, 2.0, 3.0)], 2.0, [2, 0, 1]),
    (
        "no deadline: before all that came after it",
        [Turn(0, 0.0, 1.0), Turn(1, 1.0), Turn(2, 1.5, 2.5)],
        2.0,
        [1, 2, 0],
    ),
    ("no deadline: it may come before what came earlier", [Turn(0, 0.0, 3.0), Turn(1, 1.0)], 2.0, [1, 0]),
    ("no deadlines: by arrival", [Turn(2, 2.0), Turn(0, 0.0), Turn(1, 1.0)], 9.0, [0, 1, 2]),
    ("no deadline: never late", [Turn(0, 0.0), Turn(1, 1.0, 31.0)], 19.0, [0, 1]),
    ("who has waited for the patience is first", [Turn(0, 0.0, 1.0), Turn(1, 1.0, 31.0)], 20.0, [0, 1]),
    ("several of them: by arrival", [Turn(0, 0.0, 9.0), Turn(1, 1.0, 2.0), Turn(2, 9.0, 40.0)], 21.0, [0, 1, 2]),
]


@pytest.mark.parametrize(("turns", "now_s", "order"), [t[1:] for t in TABLE], ids=[t[0] for t in TABLE])
def test_who_goes_first(turns: list[Turn], now_s: float, order: list[int]) -> None:
    line = Ordered(PATIENCE_S)
    for turn in turns:
        line.join(turn)
    assert drained(line, now_s) == order
    for i, one in enumerate(order):
        for other in order[i + 1 :]:
            by_number = {t.number: t for t in turns}
            assert line.before(by_number[one], by_number[other], now_s)
            assert not line.before(by_number[other], by_number[one], now_s)


def drained(line: Ordered, now_s: float) -> list[int]:
    out = []
    while (first := line.first(now_s)) is not None:
        out.append(first.number)
        line.leave(first)
    return out


TIMES = st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0, 5.0, 11.0])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("come"), st.none() | TIMES, TIMES),
        st.tuples(st.just("serve"), st.none(), st.just(0.0)),
        st.tuples(st.just("refuse"), st.none(), st.just(0.0)),
        st.tuples(st.just("fail over"), st.none(), st.just(0.0)),
        st.tuples(st.just("is due later"), st.none(), TIMES),
        st.tuples(st.just("give up"), st.none(), TIMES),
        st.tuples(st.just("pass"), st.none(), TIMES),
    ),
    max_size=60,
)


@given(EVENTS, st.sampled_from([0.0, 10.0, math.inf]))
def test_whatever_happens_the_first_is_whom_the_rules_name_and_nobody_is_lost(
    events: list[tuple[str, float | None, float]], patience_s: float
) -> None:
    line, here, now_s, number, in_a_row = Ordered(patience_s), dict[int, Turn](), 0.0, 0, 0
    for kind, limit_s, span_s in events:
        first = line.first(now_s)
        if kind == "serve" and first is not None:
            in_a_row = in_a_row + 1 if 0 < patience_s <= now_s - first.arrived_s else 0
            line.placed(first, now_s)
        if kind == "come":
            here[number] = Turn(number, now_s, None if limit_s is None else now_s + limit_s, span_s)
            line.join(here[number])
            number += 1
        elif kind == "pass":
            now_s += span_s
        elif first is not None:
            gone = first if kind != "give up" else here[sorted(here)[int(4 * span_s) % len(here)]]
            line.leave(gone)
            del here[gone.number]
            if kind in ("refuse", "fail over", "is due later"):
                due_s = {"refuse": gone.due_s, "fail over": None}.get(kind, now_s + span_s)
                here[gone.number] = replace(gone, due_s=due_s)
                line.join(here[gone.number])
        expected = min(here.values(), key=lambda t: t.precedence(now_s, patience_s, in_a_row), default=None)
        assert line.first(now_s) == expected
        assert len(line) == len(here)
        aged = [n for n, t in here.items() if now_s - t.arrived_s >= patience_s]
        assert not aged or in_a_row or (expected is not None and expected.number == min(aged))
    order = sorted(here, key=lambda n: here[n].precedence(now_s, patience_s, in_a_row))
    assert drained(line, now_s) == order
    if patience_s == 0:
        assert order == sorted(here)


def test_those_that_have_waited_long_and_those_that_can_be_on_time_take_turns() -> None:
    """During an overload there are always requests of both kinds.

    A request that has waited twice the patience gets three of four places.
    """
    for now_s, expected in (
        (30.0, [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]),
        (60.0, [0, 1, 2, 6, 3, 4, 5, 7, 8, 9, 10, 11]),
    ):
        line = Ordered(PATIENCE_S)
        for number in range(6):
            line.join(Turn(number, float(number), number + 1.0))
        for number in range(6, 12):
            line.join(Turn(number, now_s - 1.0, now_s + number))
        order = []
        for _ in range(12):
            first = line.first(now_s)
            assert first is not None
            order.append(first.number)
            line.leave(first)
            line.placed(first, now_s)
        assert order == expected


def test_those_that_left_do_not_pile_up_behind_one_that_stays() -> None:
    line = Ordered(1e9)
    line.join(Turn(0, 0.0, 1e6))
    for number in range(1, 5000):
        turn = Turn(number, float(number), 2e6 + number)
        line.join(turn)
        line.leave(turn)
    assert max(len(line._by_number), len(line._by_rank)) < 100
    assert line.first(5000.0) == Turn(0, 0.0, 1e6)
