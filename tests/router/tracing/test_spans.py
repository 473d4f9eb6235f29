"""Tests of the spans that are made of what the router keeps of a request."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_router.tracing.attempt_record import CHOOSE, FAILED, AttemptRecord, ChoiceRecord
from disagg_router.tracing.spans import Span, error_type, filled, spans_of
from disagg_wire import series
from disagg_wire.spent_time import Spent

REMOTE: dict[str, Any] = {"prefill": "p", "decode": "d", "path": "remote", "reason": series.SHIPPED}


def shown(spans: list[Span]) -> list[tuple[Any, ...]]:
    """Return names, times and what is within, without attributes."""
    return [
        (str(s.name).removeprefix("disagg."), s.start_s, s.end_s, *([shown(s.within)] if s.within else []))
        for s in spans
    ]


def test_a_request_that_waits_and_is_served_by_a_pair() -> None:
    marks = [
        (CHOOSE, 1.0),
        (FAILED, 1.5),
        (series.QUEUE_DECODE, 1.5),
        (CHOOSE, 3.0),
        (series.RESERVE, 3.25),
        (series.PREFILL, 3.5),
    ]
    attempt = AttemptRecord(
        1, 3.25, 9.0, computed_s=4.9, spent=Spent(0.5, 0.75), cached_tokens=16, moved_s=5.5, kv_bytes=100,
        transfer_s=1.0, exposed_s=0.5, interface="net1", transport="tcp", evidence="Proved", **REMOTE,
    )  # fmt: skip
    found = spans_of(ChoiceRecord(0.0, 9.0, marks, [attempt], first_s=5.0, last_s=9.0, tokens=4))
    assert shown(found) == [
        ("admit", 0.0, 1.0),
        ("choose", 1.0, 1.5),
        ("queue", 1.5, 3.0),
        ("choose", 3.0, 3.25),
        (
            "attempt", 3.25, 9.0,
            [("reserve", 3.25, 3.5), ("prefill", 3.5, 5.0), ("kv_transfer", 4.5, 5.5), ("decode", 5.0, 9.0)],
        ),
    ]  # fmt: skip
    assert found[2].attributes == {"disagg.pool": "decode"}
    _, prefill, transfer, decode = found[4].within
    assert prefill.attributes == {
        "disagg.pod": "p", "disagg.cached_tokens": 16, "disagg.prefill.wait_s": 0.5, "disagg.prefill.compute_s": 0.75,
    }  # fmt: skip
    assert transfer.attributes == {
        "disagg.kv.bytes": 100, "disagg.kv.exposed_s": 0.5, "disagg.kv.interface": "net1", "disagg.kv.transport": "tcp",
        "disagg.kv.evidence": "Proved",
    }  # fmt: skip
    assert decode.attributes == {"disagg.pod": "d"}
    assert found[4].count == 5
    assert not found[4].failed


def test_a_failover_is_a_second_attempt_and_goes_on_where_the_first_one_ended() -> None:
    marks = [
        (CHOOSE, 1.0),
        (series.RESERVE, 1.0),
        (series.PREFILL, 2.0),
        (FAILED, 5.0),
        (CHOOSE, 5.5),
        (series.RESERVE, 5.5),
        (series.PREFILL, 6.0),
    ]
    first = AttemptRecord(1, 1.0, 5.0, "worker_lost", computed_s=3.0, moved_s=3.5, transfer_s=0.5, **REMOTE)
    second = AttemptRecord(2, 5.5, 9.0, computed_s=7.0, moved_s=7.5, transfer_s=0.25, **REMOTE)
    found = spans_of(ChoiceRecord(0.0, 9.0, marks, [first, second], first_s=3.0, last_s=9.0, tokens=9))
    assert shown(found) == [
        ("admit", 0.0, 1.0),
        ("choose", 1.0, 1.0),
        ("attempt", 1.0, 5.0,
         [("reserve", 1.0, 2.0), ("prefill", 2.0, 3.0), ("kv_transfer", 3.0, 3.5), ("decode", 3.0, 5.0)]),
        ("retry", 5.0, 5.5),
        ("choose", 5.5, 5.5),
        ("attempt", 5.5, 9.0,
         [("reserve", 5.5, 6.0), ("prefill", 6.0, 7.0), ("decode", 7.0, 9.0), ("kv_transfer", 7.25, 7.5)]),
    ]  # fmt: skip
    attempts = [span for span in found if span.within]
    assert [(a.failed, a.attributes.get("error.type")) for a in attempts] == [(True, "worker_lost"), (False, None)]
    assert [a.attributes["disagg.attempt.number"] for a in attempts] == [1, 2]


def test_a_request_that_never_came_to_workers() -> None:
    assert shown(spans_of(ChoiceRecord(1.0, 4.0))) == [("admit", 1.0, 4.0)]
    marks = [(series.HOLD, 2.0)]
    assert shown(spans_of(ChoiceRecord(1.0, 4.0, marks))) == [("admit", 1.0, 2.0), ("hold", 2.0, 4.0)]


def test_a_refusal_is_an_attempt_with_nothing_but_the_question() -> None:
    marks = [(series.RESERVE, 1.0), (FAILED, 1.25)]
    record = AttemptRecord(1, 1.0, 1.25, "no_capacity", **REMOTE)
    found = spans_of(ChoiceRecord(1.0, 1.2505, marks, [record]))
    assert shown(found) == [("admit", 1.0, 1.0), ("attempt", 1.0, 1.25, [("reserve", 1.0, 1.25)])]


@pytest.mark.parametrize(
    ("fields", "within"),
    [
        # Prefill answers alone.
        ({"prefill": "p", "path": "prefill_only", "computed_s": 3.0}, [("reserve", 1.0, 2.0), ("prefill", 2.0, 3.0)]),
        # Decode computes the prompt.
        (
            {"decode": "d", "path": "local", "computed_s": 3.0, "moved_s": 2.0},
            [("reserve", 1.0, 2.0), ("prefill", 2.0, 3.0), ("decode", 3.0, 5.0)],
        ),
        # An engine that counts no transfers, with a worker that says nothing of its prompt.
        (
            REMOTE | {"moved_s": 2.9, "transfer_s": None},
            [("reserve", 1.0, 2.0), ("prefill", 2.0, 3.0), ("decode", 3.0, 5.0)],
        ),
    ],
    ids=["prefill only", "local", "an engine"],
)
def test_the_paths(fields: dict[str, Any], within: list[tuple[Any, ...]]) -> None:
    marks = [(series.RESERVE, 1.0), (series.PREFILL, 2.0)]
    attempt = AttemptRecord(1, 1.0, 5.0, **fields)
    (_, found) = spans_of(ChoiceRecord(0.0, 5.0, marks, [attempt], first_s=3.0, last_s=5.0, tokens=2))
    assert shown(found.within) == within


def test_a_client_that_leaves_before_the_first_token() -> None:
    marks = [(series.RESERVE, 1.0), (series.PREFILL, 2.0)]
    attempts = [AttemptRecord(1, 1.0, 4.0, **REMOTE)]
    (_, found) = spans_of(ChoiceRecord(0.0, 4.0, marks, attempts))
    assert shown(found.within) == [("reserve", 1.0, 2.0), ("prefill", 2.0, 4.0)]
    moved = [AttemptRecord(1, 1.0, 4.0, moved_s=3.0, transfer_s=0.0, **REMOTE)]
    (_, found) = spans_of(ChoiceRecord(0.0, 4.0, marks, moved))
    assert shown(found.within)[1] == ("prefill", 2.0, 3.0)


def test_a_last_token_leaves_no_time_to_decode() -> None:
    marks = [(series.RESERVE, 1.0), (series.PREFILL, 2.0)]
    attempts = [AttemptRecord(1, 1.0, 3.0, computed_s=3.0, moved_s=3.0, transfer_s=0.0, **REMOTE)]
    (_, found) = spans_of(ChoiceRecord(0.0, 3.0, marks, attempts, first_s=3.0, last_s=3.0, tokens=1))
    assert [span[0] for span in shown(found.within)] == ["reserve", "prefill", "kv_transfer"]


@pytest.mark.parametrize(
    ("word", "shown_as"),
    [
        ("worker_lost", "worker_lost"),
        (None, "_OTHER"),
        ("", "_OTHER"),
        ("My secret prompt", "_OTHER"),
        ("a" * 65, "_OTHER"),
    ],
)
def test_an_error_is_named_by_a_plain_word_alone(word: str | None, shown_as: str) -> None:
    assert error_type(word) == shown_as


def test_what_is_not_known_is_no_attribute() -> None:
    assert filled({"a": None, "b": "", "c": 0, "d": False, "e": 0.0}) == {"c": 0, "d": False, "e": 0.0}
