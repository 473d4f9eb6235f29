"""Everything that is kept comes back as it was, and what does not fit is refused by name."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.autoscaling.policy.test_guard import SETTINGS, blind, observation

from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.autoscaling.policy.predictive import Peak, Settings
from disagg_operator.autoscaling.records import codec


def test_everything_that_is_kept_comes_back_as_it_was() -> None:
    settings = replace(SETTINGS, peaks=(Peak(0.0, 60.0, 2, 3),), ratio=(0.5, 4.0), gpu_budget=16, role_flip_s=5.0)
    assert codec.parse(Settings, codec.plain(settings)) == settings
    o = observation(5)
    # As text, NaN equals itself on every version of Python.
    assert repr(codec.parse(Observation, codec.plain(o))) == repr(o)
    hidden = codec.parse(Observation, codec.plain(blind(5)))
    assert hidden.blind
    targets = Targets(1, 2, "why", {"prefill_x": 1.5})
    assert codec.parse(Targets, codec.plain(targets)) == targets


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"now_s": "x"}, "Observation.now_s"),
        ({"now_s": 1.0, "interval_s": 1.0, "prefill": {"pods": {"replicas": True}}}, "replicas"),
        ({"odd": 1}, "Observation.odd"),
        ([], "Observation"),
        ({"now_s": 1.0}, "Observation"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(raw: Any, field: str) -> None:
    with pytest.raises(codec.CodecError, match=field):
        codec.parse(Observation, raw)


@dataclass(frozen=True)
class Inner:
    """A part of a record."""

    number: float = 0.0


@dataclass(frozen=True)
class Record:
    """A record of all kinds of fields."""

    name: str
    count: int = 0
    ratio: float = 0.0
    until_s: float = math.inf
    on: bool = False
    inner: Inner = Inner()
    maybe: Inner | None = None
    many: tuple[int, ...] = ()
    pair: tuple[int, float] = (0, 0.0)
    parts: dict[str, Inner] = field(default_factory=dict)


NUMBERS = st.floats(allow_nan=False).filter(lambda x: abs(x) != sys.float_info.max)
INNERS = st.builds(Inner, NUMBERS)
RECORDS = st.builds(
    Record, st.text(), st.integers(), NUMBERS, NUMBERS, st.booleans(), INNERS, st.none() | INNERS,
    st.lists(st.integers()).map(tuple), st.tuples(st.integers(), NUMBERS),
    st.dictionaries(st.text(), INNERS, max_size=3),
)  # fmt: skip


@given(RECORDS)
def test_a_record_survives_as_json(record: Record) -> None:
    text = json.dumps(codec.plain(record), allow_nan=False)
    assert codec.parse(Record, json.loads(text)) == record


def test_numbers_that_json_lacks_have_a_place() -> None:
    assert codec.plain([math.nan, math.inf, -math.inf]) == [None, sys.float_info.max, -sys.float_info.max]
    found = codec.parse(Record, {"name": "a", "ratio": None, "inner": {"number": -sys.float_info.max}})
    assert math.isnan(found.ratio)
    assert found.inner.number == -math.inf


def test_a_null_is_the_default_where_that_is_infinite_and_a_field_that_is_missing_has_its_default() -> None:
    assert codec.parse(Record, {"name": "a", "until_s": None}) == Record("a")


def test_digits_round_floats_and_nothing_else() -> None:
    plain = codec.plain(Record("a", 123_456, 1.23456, many=(98_765,)), 3)
    assert (plain["count"], plain["ratio"], plain["many"], plain["until_s"]) == (
        123_456,
        1.23,
        [98_765],
        sys.float_info.max,
    )


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "Record: not a map"),
        ({}, "Record: .*name"),
        ({"name": 5}, "Record.name: 5 is not"),
        ({"name": "a", "count": 1.5}, "Record.count: 1.5 is not"),
        ({"name": "a", "count": True}, "Record.count: True is not"),
        ({"name": "a", "ratio": "1"}, "Record.ratio: '1' is not a number"),
        ({"name": "a", "ratio": True}, "Record.ratio: True is not a number"),
        ({"name": "a", "on": 1}, "Record.on: 1 is not"),
        ({"name": "a", "inner": None}, "Record.inner: not a map"),
        ({"name": "a", "maybe": {"odd": 1}}, "Record.maybe.odd: unknown field"),
        ({"name": "a", "many": 5}, "Record.many: not a list"),
        ({"name": "a", "many": [1, "x"]}, r"Record.many\[1\]: 'x' is not"),
        ({"name": "a", "pair": [1]}, "Record.pair: 1 items, not 2"),
        ({"name": "a", "pair": [1, "x"]}, r"Record.pair\[1\]: 'x' is not a number"),
        ({"name": "a", "parts": []}, "Record.parts: not a map"),
        ({"name": "a", "parts": {"x": 1}}, "Record.parts.x: not a map"),
    ],
)
def test_a_field_that_does_not_fit_is_named(raw: Any, words: str) -> None:
    with pytest.raises(codec.CodecError, match=words):
        codec.parse(Record, raw)
