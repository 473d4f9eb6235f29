"""Tokens in from two legs in any order; out once each, in order; ended once."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.request_state import ProtocolViolation, RequestState


def state(max_new_tokens: int = 8, **sampling: Any) -> RequestState:
    values = {"max_new_tokens": max_new_tokens, "min_tokens": 0, "stop_token_ids": [0]} | sampling
    return RequestState("r", "m", (1, 2), values, 3)


def line(index: int, token: int = 7, **more: Any) -> dict[str, Any]:
    return {"type": "token", "index": index, "token": token} | more


@given(st.permutations(range(8)))
def test_tokens_come_out_in_order_however_they_come_in(order: list[int]) -> None:
    s = state()
    out = [t.token for i in order for t in s.token(line(i, 100 + i))]
    assert out == s.emitted == list(range(100, 108))


@given(st.lists(st.integers(1, 7), max_size=4))
def test_over_any_number_of_failovers_every_token_comes_out_once(chunks: list[int]) -> None:
    s = state(max_new_tokens=40)
    for size in chunks:
        at = len(s.emitted)
        # The last token of each attempt is early, and lost with it.
        for i in [*range(at, at + size), at + size + 1]:
            s.token(line(i, i))
        s.next_attempt()
        assert s.body(1.0)["tokens"] == [1, 2, *range(at + size)]
    assert s.emitted == list(range(sum(chunks)))
    assert (s.epoch, s.body(1.0)["epoch"], s.body(1.0)["prompt_tokens"]) == (len(chunks), len(chunks), 2)


@pytest.mark.parametrize(
    "bad",
    [line(1), line(-1), line(8), {"type": "token"}, line(2, token=None), line(2, logprob="x"), line(2, top_logprobs=[[1]]),
     line(2, top_logprobs=5)],
)  # fmt: skip
def test_what_can_not_be_a_token_is_a_violation(bad: dict[str, Any]) -> None:
    s = state()
    s.token(line(0))
    s.token(line(1))
    with pytest.raises(ProtocolViolation):
        s.token(bad)


def test_the_end_counts_once_every_token_is_out() -> None:
    s = state()
    assert s.finished is None
    s.end("length")
    assert s.finished is None
    s.token(line(1))
    assert s.finished is None
    s.token(line(0))
    assert s.finished == "length"
    with pytest.raises(ProtocolViolation):
        s.end("prefilled")


@pytest.mark.parametrize(
    ("tokens", "sampling", "wanted"),
    [
        ([], {}, None),
        ([5], {}, None),
        ([0], {}, "stop"),
        ([5, 0], {"min_tokens": 2}, None),
        ([5, 5, 0], {"min_tokens": 2}, "stop"),
        ([0], {"stop_token_ids": []}, None),
        ([5] * 8, {}, "length"),
        ([5] * 7 + [0], {}, "stop"),
    ],
)
def test_tokens_that_end_the_request_by_themselves_are_recognised(tokens: list[int], sampling: dict[str, Any], wanted: str | None) -> None:
    s = state(**sampling)
    for i, token in enumerate(tokens):
        s.token(line(i, token))
    assert s.complete == wanted


def test_the_budget_counts_failures_and_one_token_is_prefills_alone() -> None:
    s = state(max_new_tokens=2)
    assert not s.single_token
    s.token(line(0))
    assert s.single_token
    assert [s.failed(), s.failed(), s.failed()] == [True, True, False]
