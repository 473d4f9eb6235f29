"""Samples hold finite numbers from 0 on, and absent is never zero."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.autoscaling.signals.direct import parse_json_object
from disagg_operator.autoscaling.signals.metrics_page import parse
from disagg_operator.autoscaling.signals.samples import Sample, add, flat, from_matrix, role_of


def _series(pod: str, name: str, *points: tuple[float, str], **labels: str) -> dict[str, object]:
    return {"metric": {"__name__": name, "pod": pod, **labels}, "values": [list(p) for p in points]}


def test_raw_samples_of_a_prometheus_keep_their_own_times() -> None:
    answer = [
        _series("a", "disagg_worker_waiting_requests", (100.0, "1"), (115.0, "2")),
        _series("a", "disagg_worker_running_requests", (115.0, "3")),
        _series("a", "disagg_worker_waiting_tokens", (100.0, "9")),  # ended with the previous scrape
        _series("b", "disagg_worker_waiting_requests", (40.0, "8")),  # too old
        _series("c", "disagg_worker_waiting_requests", (110.0, "NaN")),
        _series("c", "disagg_worker_running_requests", (110.0, "4")),
        _series("d", "up", (115.0, "1")),
    ]
    assert from_matrix(answer, 120.0, 75.0) == {
        "a": Sample(115.0, {"disagg_worker_waiting_requests": 2.0, "disagg_worker_running_requests": 3.0}),
        "c": Sample(110.0, {"disagg_worker_waiting_requests": math.nan, "disagg_worker_running_requests": 4.0}),
    }
    assert from_matrix([], 120.0, 75.0) == {}
    assert from_matrix(None, 120.0, 75.0) is None


@given(st.recursive(st.none() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)))
def test_no_answer_of_a_prometheus_can_break_the_reader(answer: object) -> None:
    from_matrix(answer, 0.0, 75.0)
    from_matrix([{"metric": answer, "values": answer}], 0.0, 75.0)
    from_matrix([{"metric": {"__name__": "disagg_worker_kv_tokens", "pod": "a"}, "values": [answer]}], 0.0, 75.0)


@pytest.mark.parametrize(
    "series",
    [
        None, {}, {"metric": {"pod": "a"}, "values": [[1.0, "1"]]},
        {"metric": {"__name__": "disagg_worker_kv_tokens"}, "values": [[1.0, "1"]]},
        {"metric": {"__name__": "disagg_worker_kv_tokens", "pod": "a"}, "values": []},
        {"metric": {"__name__": "disagg_worker_kv_tokens", "pod": "a"}, "values": [[1.0]]},
        {"metric": {"__name__": "disagg_worker_kv_tokens", "pod": "a"}, "values": [[1.0, "many"]]},
    ],
)  # fmt: skip
def test_a_series_that_makes_no_sense_is_left_out(series: object) -> None:
    good = _series("b", "disagg_worker_kv_tokens", (1.0, "5"))
    assert from_matrix([series, good], 1.0, 75.0) == {"b": Sample(1.0, {"disagg_worker_kv_tokens": 5.0})}


def test_what_is_absent_is_not_a_number() -> None:
    assert Sample(0.0, {"a": 1.0}).get("a") == 1.0
    assert math.isnan(Sample(0.0, {"a": 1.0}).get("b"))


@pytest.mark.parametrize(
    ("added", "known"),
    [
        ((1.0, 2.0), 3.0),
        ((0.0,), 0.0),
        ((math.nan,), math.nan),
        ((1.0, math.nan, 2.0), math.nan),
        ((math.nan, 1.0), math.nan),
        ((1.0, math.inf), math.nan),
        ((1.0, -1.0), math.nan),
    ],
)
def test_series_of_one_name_are_summed_and_what_is_no_amount_makes_the_sum_unknown(
    added: tuple[float, ...], known: float
) -> None:
    values: dict[str, float] = {}
    for value in added:
        add(values, "a", value)
    assert values == {"a": pytest.approx(known, nan_ok=True)}


def test_a_page_may_say_that_it_does_not_know() -> None:
    found = parse("disagg_worker_kv_tokens NaN\ndisagg_worker_running_requests 2\n", 0.0)
    assert found is not None
    assert math.isnan(found.get("disagg_worker_kv_tokens"))
    assert found.get("disagg_worker_running_requests") == 2


def test_labels_of_our_own_are_written_in_one_order() -> None:
    labels = {"role": "r", "pool": "p", "kind": "k", "part": "t", "within": "w", "objective": "o", "job": "x"}
    labels["source"] = "s"
    assert flat("name", labels) == "name:o:w:t:k:p:r:s"
    assert flat("name", {"job": "x"}) == "name"


def test_a_worker_says_its_role_on_its_page() -> None:
    assert role_of(parse('disagg_worker_info{role="decode",model="m"} 1\n', 0.0)) == "decode"
    assert role_of(Sample(0.0, {"disagg_worker_kv_tokens": 1.0})) is None
    assert role_of(None) is None


def test_a_role_that_a_worker_had_before_is_none() -> None:
    roles = {"disagg_worker_info:prefill": 0.0, "disagg_worker_info:decode": 1.0}
    assert role_of(Sample(0.0, roles)) == "decode"


def test_a_page_that_is_larger_than_any_of_ours_is_not_read() -> None:
    line = "disagg_worker_waiting_requests 1\n"
    assert parse(line, 1.0) is not None
    assert parse(line + "other 1\n" * 40_000, 1.0) is not None
    assert parse(line + "other 1\n" * 50_000, 1.0) is None
    assert parse(line * 2001, 1.0) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"a": [1, {}]}', {"a": [1, {}]}),
        ("[]", None),
        ("{", None),
        ('{"a": [' + "{}," * 200_000 + "{}]}", None),
        ('{"a": [' + "1," * 200_001 + "1]}", None),
        ('{"a": ' + "[" * 5000 + "]" * 5000 + "}", None),
    ],
)
def test_a_text_with_absurdly_many_parts_is_no_object(text: str, found: object) -> None:
    assert parse_json_object(text) == found
