"""Tests of the ids of events, with which clients say what they have."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.errors import ApiError
from disagg_router.openai.event_ids import Progress, parse_id

CLOSING: dict[str, Any] = {"choices": [], "usage": {}}


def event(index: int) -> dict[str, Any]:
    return {"choices": [{"index": index}]}


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0", (0,)), ("12", (12,)), ("1.2.3", (1, 2, 3)), ("", None), ("-1", None), ("1.", None), ("1.a", None),
     ("\u0663", None), ("123456789", None), (".".join(["1"] * 257), (1,) * 257), (".".join(["1"] * 258), None)],
)  # fmt: skip
def test_ids_are_numbers(text: str, numbers: tuple[int, ...] | None) -> None:
    if numbers is None:
        with pytest.raises(ApiError, match="Last-Event-ID"):
            parse_id(text)
    else:
        assert parse_id(text) == numbers


@pytest.mark.parametrize(("choices", "has"), [(1, (1, 2)), (3, (1, 2)), (3, (5,)), (3, (1, 2, 3, 1, 1))])
def test_an_id_of_another_answer_is_refused(choices: int, has: tuple[int, ...]) -> None:
    with pytest.raises(ApiError) as refused:
        Progress(choices, has)
    assert refused.value.status == 400


def test_the_event_with_the_usage_counts_like_others_of_one_choice() -> None:
    progress = Progress(1, (2,))
    assert [progress.take(e) for e in (event(0), event(0), CLOSING)] == [False, False, True]
    assert progress.id() == "3"
    assert progress.any_new
    assert [Progress(1, (3,)).take(CLOSING), Progress(1, (0,)).take(CLOSING)] == [False, True]


def test_errors_are_news_and_count_nothing() -> None:
    progress = Progress(2, (1, 1))
    assert progress.take({"error": {}})
    assert progress.id() == "1.1"


def test_who_has_more_than_there_is_gets_an_error() -> None:
    progress = Progress(1, (2,))
    progress.take(event(0))
    with pytest.raises(ApiError, match="fewer"):
        progress.check_end()
    progress.take(event(0))
    progress.check_end()


@given(st.lists(st.integers(0, 2), max_size=30), st.data(), st.booleans())
def test_wherever_it_is_cut_the_rest_is_news_and_no_more(order: list[int], data: st.DataObject, closes: bool) -> None:
    """Events of different choices may come in another order the second time."""
    whole = [event(i) for i in order] + ([CLOSING] if closes else [])
    cut = data.draw(st.integers(0, len(whole)))
    first = Progress(3)
    ids = ["0"]
    for e in whole[:cut]:
        assert first.take(e)
        ids.append(first.id())
    assert len(set(ids)) == len(ids)
    again = [event(i) for i in data.draw(st.permutations(order))] + whole[len(order) :]
    second = Progress(3, parse_id(ids[-1]))
    news = [e for e in again if second.take(e)]
    assert sorted(map(str, whole[:cut] + news)) == sorted(map(str, whole))
    second.check_end()
    full = Progress(3)
    for e in whole:
        full.take(e)
    assert second.id() == full.id()
