"""Tests that the tokens of two legs and several attempts go out once each, in order."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.dispatch.request_state import ProtocolViolation, RequestState
from disagg_router.workers.worker_info import Identity


def make(n: int = 10, attempts: int = 3, **sampling: Any) -> RequestState:
    return RequestState(
        "r", Identity("m", "D"), (1, 2, 3), {"max_new_tokens": n, "stop_token_ids": [0]} | sampling, attempts
    )


def line(index: int, token: int = 7, **more: Any) -> dict[str, Any]:
    return {"type": "token", "index": index, "token": token, **more}


@given(st.data(), st.integers(1, 12))
def test_any_interleaving_of_two_legs_gives_each_token_once_and_in_order(data: st.DataObject, n: int) -> None:
    state, out = make(n), []
    legs = [[0], list(range(1, n))]
    while any(legs):
        leg = data.draw(st.sampled_from([leg for leg in legs if leg]))
        index = leg.pop(0)
        out += state.token(line(index, 100 + index))
    assert [(t.index, t.token) for t in out] == [(i, 100 + i) for i in range(n)]
    assert state.emitted == [100 + i for i in range(n)]
    assert state.complete == "length"


@given(st.lists(st.integers(0, 11), unique=True))
def test_what_is_out_has_no_gap_whatever_came_so_far(indices: list[int]) -> None:
    state, out = make(12), []
    for index in indices:
        out += [t.index for t in state.token(line(index))]
    assert out == list(range(len(out)))
    assert len(out) == next(i for i in range(13) if i not in indices)
    state.end("length")
    assert (state.finished is not None) == (len(out) == len(indices) > 0)


@given(st.permutations(range(5)), st.integers(0, 4))
def test_a_token_that_came_before_is_a_violation_and_changes_nothing(order: list[int], again: int) -> None:
    state = make(6)
    for index in order:
        state.token(line(index))
    before = list(state.emitted)
    with pytest.raises(ProtocolViolation):
        state.token(line(again, 99))
    assert state.emitted == before


@given(st.lists(st.integers(1, 6), min_size=1, max_size=4))
def test_attempts_that_break_off_anywhere_add_up_without_gap_or_repeat(parts: list[int]) -> None:
    total = sum(parts)
    state, out = make(total, attempts=9), []
    for part in parts:
        at = len(state.emitted)
        body = state.body(1.0)
        assert body["tokens"] == [1, 2, 3, *range(100, 100 + at)]
        assert (body["prompt_tokens"], body["epoch"]) == (3, state.epoch)
        out += [t for i in range(at, at + part) for t in state.token(line(i, 100 + i))]
        if len(state.emitted) + 1 < total:
            state.token(line(at + part + 1, 55))  # too early: the attempt dies before the token in front of it comes
        state.next_attempt()
    assert [t.token for t in out] == list(range(100, 100 + total))
    assert state.epoch == len(parts)


@pytest.mark.parametrize(
    "garbled",
    [
        {},
        {"index": 0},
        {"token": 1},
        line(-1),
        line(10),
        {"index": "x", "token": 1},
        {"index": None, "token": 1},
        line(0, -1),
        line(0, 1 << 31),
        {"index": float("inf"), "token": 1},
        {"index": 0, "token": float("inf")},
        {"index": 0, "token": float("nan")},
        line(0, logprob="x"),
        line(0, logprob=float("nan")),
        line(0, top_logprobs=[[1]]),
        line(0, top_logprobs=5),
        line(0, top_logprobs=[[-1, 0.0]]),
    ],
)
def test_a_garbled_token_is_a_violation_and_is_not_shown(garbled: dict[str, Any]) -> None:
    state = make()
    with pytest.raises(ProtocolViolation):
        state.token(garbled)
    assert state.emitted == []


def test_a_forbidden_tokens_logprob_is_a_number_that_json_has() -> None:
    [token] = make().token(line(0, logprob=-0.5, top_logprobs=[[1, float("-inf")]]))
    assert (token.logprob, token.top_logprobs) == (-0.5, ((1, -9999.0),))


def test_an_end_counts_only_when_all_before_it_is_out() -> None:
    state = make(2)
    state.token(line(1))
    state.end("length")
    assert state.finished is None
    state.token(line(0))
    assert state.finished == "length"
    with pytest.raises(ProtocolViolation):
        state.end("prefilled")


def test_an_end_of_an_attempt_that_failed_is_forgotten() -> None:
    state = make(4)
    state.token(line(0))
    state.token(line(2))
    state.end("stop")
    state.next_attempt()
    assert state.finished is None
    assert [t.index for t in state.token(line(1))] == [1]


@pytest.mark.parametrize(
    ("tokens", "sampling", "wanted"),
    [
        ([], {}, None),
        ([5], {}, None),
        ([5, 0], {}, "stop"),
        ([0], {"min_tokens": 1}, None),
        ([5, 0], {"min_tokens": 1}, "stop"),
        ([5, 0], {"stop_token_ids": []}, None),
        ([5] * 10, {}, "length"),
    ],
)
def test_the_tokens_themselves_tell_when_a_request_is_over(
    tokens: list[int], sampling: dict[str, Any], wanted: str | None
) -> None:
    state = make(10, **sampling)
    for i, token in enumerate(tokens):
        state.token(line(i, token))
    assert state.complete == wanted


def test_only_a_request_for_an_adapter_names_one() -> None:
    state = make()
    assert "adapter" not in state.body(1.0)
    state.identity = Identity("sql", "D", "sql")
    assert state.body(1.0)["adapter"] == "sql"


def test_a_format_is_resumed_once_a_token_is_out() -> None:
    structured, plain = make(structured={"kind": "regex", "value": "a+"}), make(structured=None)
    assert not structured.resumes_format
    for state in (structured, plain):
        state.token(line(0))
    assert (structured.resumes_format, plain.resumes_format) == (True, False)


def test_attempts_are_counted_and_bounded() -> None:
    state = make(attempts=3)
    assert [state.failed() for _ in range(4)] == [True, True, False, False]


def test_the_last_token_needs_prefill_alone() -> None:
    state = make(3)
    wants = []
    for i in range(3):
        wants.append(state.single_token)
        state.token(line(i))
    assert wants == [False, False, True]


@pytest.mark.parametrize("cached", [-1, 4, True, 1.0, "2", None])
def test_cached_tokens_are_a_part_of_the_prompt(cached: Any) -> None:
    state = make()
    with pytest.raises(ProtocolViolation, match="cached_tokens"):
        state.token(line(0, cached_tokens=cached))
    assert (state.cached_tokens, state.emitted) == (0, [])


def test_cached_tokens_count_with_the_first_token_of_the_request_alone() -> None:
    state = make()
    state.token(line(0, cached_tokens=2))
    state.next_attempt()
    state.token(line(1, cached_tokens=3))
    assert state.cached_tokens == 2


def test_what_is_kept_is_named_in_each_attempt_and_what_the_first_has_found_in_the_next() -> None:
    state = make()
    state.resume = {"name": "n"}
    assert state.body(1.0)["resume"] == {"name": "n"}
    state.token({"index": 0, "token": 5, "cached_tokens": 1})
    assert state.body(1.0)["resume"] == {"name": "n", "cached_tokens": 1}
    assert state.needs_no_more
    state.shown = True
    assert not state.needs_no_more
    state.over = True
    assert state.needs_no_more
