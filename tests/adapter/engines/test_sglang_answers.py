"""Tests of SGLang's JSON."""

from __future__ import annotations

from typing import Any

import pytest
from tests.adapter.engines.works import delta, structured, work

from disagg_adapter.engines.contract import EngineFault, Output
from disagg_adapter.engines.sglang_answers import delta_of, ended_as_asked, room_of, sampling_params
from disagg_wire import codes


def event(tokens: list[int], reason: Any = None, **meta: Any) -> dict[str, Any]:
    return {"output_ids": tokens, "meta_info": {"finish_reason": reason, "cached_tokens": 3} | meta}


def test_rooms_have_63_bits_and_differ() -> None:
    rooms = {room_of(f"request-{i}") for i in range(1000)}
    assert len(rooms) == 1000
    assert all(0 < room < 1 << 63 for room in rooms)
    assert max(rooms) >= 1 << 62
    assert room_of("request-1") == room_of("request-1")


def test_limits_count_what_was_emitted() -> None:
    params = sampling_params(work(emitted=3, max_new_tokens=10, min_tokens=5))
    assert params["max_new_tokens"] == 7
    assert params["min_new_tokens"] == 2


def test_without_stop_tokens_nothing_ends_the_output() -> None:
    assert sampling_params(work(stop_token_ids=[]))["ignore_eos"] is True
    params = sampling_params(work(stop_token_ids=[2, 5]))
    assert params["ignore_eos"] is False
    assert params["stop_token_ids"] == [2, 5]


def test_no_limit_on_the_best_tokens_is_minus_one() -> None:
    assert sampling_params(work())["top_k"] == -1
    assert sampling_params(work(top_k=5))["top_k"] == 5


def test_biases_are_named_by_text() -> None:
    assert sampling_params(work(logit_bias=[(3, -1.5)]))["logit_bias"] == {"3": -1.5}
    assert "logit_bias" not in sampling_params(work())


@pytest.mark.parametrize(
    ("kind", "value", "name", "sent"),
    [
        ("json_schema", "{}", "json_schema", "{}"),
        ("regex", "a+", "regex", "a+"),
        ("choice", '["a+", "b"]', "regex", "(a\\+|b)"),
    ],
)
def test_formats(kind: str, value: str, name: str, sent: str) -> None:
    assert sampling_params(work(structured=structured(kind, value)))[name] == sent


def test_prefill_ends_as_it_was_asked_to() -> None:
    request = work(max_new_tokens=1)
    assert ended_as_asked(delta(2, reason="length"), request).finish_reason == "stop"
    assert ended_as_asked(delta(5, reason="length"), request).finish_reason == "length"
    assert ended_as_asked(delta(5), request).finish_reason is None
    assert ended_as_asked(delta(reason="length"), request).outputs == ()


def test_a_chunk_without_tokens_and_end_says_nothing() -> None:
    assert delta_of(event([]), codes.INTERNAL) is None


def test_tokens_and_end() -> None:
    found = delta_of(event([5, 6], {"type": "stop", "matched": 6}), codes.INTERNAL)
    assert found is not None
    assert (found.outputs, found.finish_reason, found.cached_tokens) == ((Output(5), Output(6)), "stop", 3)


def test_log_probabilities_are_cut_to_what_was_asked_for() -> None:
    chunk = event(
        [5, 6],
        output_token_logprobs=[[-0.5, 5, None], [-1.0, 6, None]],
        output_top_logprobs=[[[-0.5, 5, None], [-0.9, 7, None]], None],
    )
    found = delta_of(chunk, codes.INTERNAL, 1)
    assert found is not None
    assert found.outputs == (Output(5, -0.5, ((5, -0.5),)), Output(6, -1.0, ()))


def test_log_probabilities_without_alternatives() -> None:
    found = delta_of(event([5], output_token_logprobs=[[-0.5, 5, None]]), codes.INTERNAL, 0)
    assert found is not None
    assert found.outputs == (Output(5, -0.5, ()),)


@pytest.mark.parametrize(
    "chunk",
    [
        {},
        {"meta_info": None},
        {"meta_info": {"finish_reason": "stop"}},
        event(["x"]),  # type: ignore[list-item]
        None,
        event([5], {"type": "other"}),
    ],
)
def test_what_is_garbled_is_an_error(chunk: Any) -> None:
    with pytest.raises(EngineFault) as fault:
        delta_of(chunk, codes.TRANSFER_FAILED)
    assert fault.value.code == codes.INTERNAL


def test_a_log_probability_that_is_missing_is_an_error() -> None:
    with pytest.raises(EngineFault, match="1 log probabilities for 2 tokens"):
        delta_of(event([5, 6], output_token_logprobs=[[-0.5, 5, None]]), codes.INTERNAL, 0)


def test_the_token_of_an_aborted_chunk_is_not_used() -> None:
    with pytest.raises(EngineFault, match="Abort"):
        delta_of(event([5], {"type": "abort", "message": "Abort in waiting queue"}), codes.INTERNAL)


def test_an_error_in_a_stream() -> None:
    with pytest.raises(EngineFault, match="bad") as fault:
        delta_of({"error": {"message": "bad", "code": 400}}, codes.INTERNAL)
    assert not fault.value.retryable
