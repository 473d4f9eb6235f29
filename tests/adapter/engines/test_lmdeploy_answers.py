"""Tests of LMDeploy's JSON."""

from __future__ import annotations

from typing import Any

import pytest
from tests.adapter.engines.works import PROMPT, delta, structured, work

from disagg_adapter.engines.contract import EngineFault, Output
from disagg_adapter.engines.lmdeploy_answers import Cut, delta_of, request_body
from disagg_wire import codes


def event(tokens: list[int] | None, reason: str | None = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "output_ids": tokens, "finish_reason": reason} | choice]}


def test_tokens_take_the_place_of_messages() -> None:
    body = request_body(work(emitted=1), "m")
    assert body["messages"] == []
    assert body["input_ids"] == [*PROMPT, 20]
    assert body["max_completion_tokens"] == 3
    assert body["ignore_eos"] is False
    assert not {"return_logprob", "logit_bias", "response_format"} & set(body)


def test_what_is_asked_for_in_addition() -> None:
    body = request_body(work(stop_token_ids=[], logprobs=0, logit_bias=[(3, -1.5)]), "m")
    assert body["ignore_eos"] is True
    assert body["return_logprob"] is True
    assert body["logit_bias"] == {"3": -1.5}


@pytest.mark.parametrize(
    ("kind", "value", "sent"),
    [
        ("json_schema", "{}", {"type": "json_schema", "json_schema": {"name": "output", "schema": {}}}),
        ("regex", "a+", {"type": "regex_schema", "regex_schema": "a+"}),
        ("choice", '["a+"]', {"type": "regex_schema", "regex_schema": "(a\\+)"}),
    ],
)
def test_formats(kind: str, value: str, sent: Any) -> None:
    assert request_body(work(structured=structured(kind, value)), "m")["response_format"] == sent


def test_the_output_is_cut_at_a_stop_token() -> None:
    cut = Cut(work(stop_token_ids=[2, 5], max_new_tokens=8))
    assert cut.of(None) is None
    assert cut.of(delta(7, 8)) == delta(7, 8)
    assert cut.of(delta(9, 5, 6)) == delta(9, 5, reason="stop")
    assert cut.count == 4


def test_a_stop_token_before_the_least_length_does_not_end_the_output() -> None:
    cut = Cut(work(stop_token_ids=[5], min_tokens=2, max_new_tokens=8))
    assert cut.of(delta(5)) == delta(5)
    assert cut.of(delta(5)) == delta(5, reason="stop")


def test_the_output_is_cut_at_its_length() -> None:
    assert Cut(work(max_new_tokens=2)).of(delta(7, 8, 9)) == delta(7, 8, reason="length")


def test_the_engines_own_end_stays() -> None:
    assert Cut(work()).of(delta(7, reason="stop")) == delta(7, reason="stop")
    assert Cut(work()).of(delta(reason="length")) == delta(reason="length")


def test_chunks() -> None:
    assert delta_of({"choices": []}) is None
    assert delta_of(event(None)) is None
    assert delta_of(event([5])) == delta(5)
    assert delta_of(event([], "length")) == delta(reason="length")
    found = delta_of(event([5], output_token_logprobs=[[-0.5, 5]]), logprobs=True)
    assert found is not None
    assert found.outputs == (Output(5, -0.5),)


@pytest.mark.parametrize(
    "chunk",
    [{}, None, {"choices": [None]}, event(["x"]), event([5], "abort"), event([5], "tool_calls")],  # type: ignore[list-item]
)
def test_what_is_garbled_or_broken_off_is_an_error(chunk: Any) -> None:
    with pytest.raises(EngineFault) as fault:
        delta_of(chunk)
    assert fault.value.code == codes.INTERNAL


def test_a_log_probability_that_is_missing_is_an_error() -> None:
    with pytest.raises(EngineFault):
        delta_of(event([5]), logprobs=True)


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(404, codes.INVALID_REQUEST, False), (503, codes.NO_CAPACITY, True), (500, codes.INTERNAL, True)],
)
def test_errors_in_a_stream(status: int, code: str, retryable: bool) -> None:
    with pytest.raises(EngineFault, match="text") as found:
        delta_of({"error": {"message": "text", "code": status}})
    assert (found.value.code, found.value.retryable) == (code, retryable)
