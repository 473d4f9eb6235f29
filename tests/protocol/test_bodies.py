"""Tests of the bodies: each one is checked field by field, and an event becomes one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.bodies import (
    BadRequest,
    DecodeRequest,
    PrefillRequest,
    encode_line,
    encode_token,
    encoded,
    event_json,
    parse,
    parse_drain,
    parse_role,
    parse_room,
)
from disagg_protocol.events import EndEvent, ErrorEvent, Event, TokenEvent
from disagg_protocol.sampling_params import SamplingParams, Structured
from disagg_wire.room import Room

SAMPLING: dict[str, Any] = {"seed": 1, "max_new_tokens": 4}
GOOD: dict[str, Any] = {
    "request_id": "ab",
    "epoch": 0,
    "mode": "remote",
    "tokens": [1, 2, 3],
    "prompt_tokens": 3,
    "sampling": SAMPLING,
    "deadline_s": 60.0,
}


def decode(**change: Any) -> DecodeRequest:
    return parse(DecodeRequest, json.dumps(GOOD | change).encode())


def test_the_whole_of_sampling_reaches_the_engine() -> None:
    sent = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "seed": 2**63,
        "presence_penalty": -1.0,
        "frequency_penalty": 1,
        "repetition_penalty": 1.1,
        "logit_bias": [[50, -100.0], [7, 3]],
        "logprobs": 5,
        "stop_token_ids": [0, 2],
        "max_new_tokens": 128,
        "min_tokens": 2,
    }
    params = decode(sampling=sent).sampling.to_params()
    assert params == SamplingParams(
        seed=2**63,
        max_new_tokens=128,
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        min_p=0.1,
        presence_penalty=-1.0,
        frequency_penalty=1.0,
        repetition_penalty=1.1,
        logit_bias=((50, -100.0), (7, 3.0)),
        logprobs=5,
        stop_token_ids=(0, 2),
        min_tokens=2,
    )


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"mode": "both"}, "mode"),
        ({"tokens": []}, "tokens"),
        ({"tokens": [-1]}, "tokens.0"),
        ({"tokens": [2**31]}, "tokens.0"),
        ({"tokens": [10**30]}, "tokens.0"),
        ({"tokens": ["1"]}, "tokens.0"),
        ({"tokens": [1.0]}, "tokens.0"),
        ({"tokens": [True]}, "tokens.0"),
        ({"prompt_tokens": 0}, "prompt_tokens"),
        ({"prompt_tokens": 4}, "prompt_tokens"),
        ({"deadline_s": 0}, "deadline_s"),
        ({"deadline_s": float("inf")}, "deadline_s"),
        ({"first_token_within_s": 1.0}, "first_token_within_s: only with mode local"),
        ({"mode": "local", "first_token_within_s": 86401}, "first_token_within_s"),
        ({"mode": "local", "first_token_within_s": -86401}, "first_token_within_s"),
        ({"mode": "local", "first_token_within_s": "1"}, "first_token_within_s"),
        ({"mode": "local", "first_token_within_s": float("nan")}, "first_token_within_s"),
        ({"request_id": "a b"}, "request_id"),
        ({"request_id": "a\n"}, "request_id"),
        ({"request_id": ""}, "request_id"),
        ({"epoch": -1}, "epoch"),
        ({"host": "10.0.0.1"}, "host"),
        ({"tenant": "x" * 129}, "tenant"),
        ({"tenant": None}, "tenant"),
        ({"sampling": SAMPLING | {"seed": -1}}, "sampling.seed"),
        ({"sampling": SAMPLING | {"seed": 2**64}}, "sampling.seed"),
        ({"sampling": SAMPLING | {"temperature": float("nan")}}, "sampling.temperature"),
        ({"sampling": SAMPLING | {"top_p": 0}}, "sampling.top_p"),
        ({"sampling": SAMPLING | {"max_new_tokens": 0}}, "sampling.max_new_tokens"),
        ({"sampling": SAMPLING | {"logit_bias": [[1, 1000]]}}, "sampling.logit_bias"),
        ({"sampling": SAMPLING | {"repetition_penalty": 3e-38}}, "sampling.repetition_penalty"),
        ({"sampling": SAMPLING | {"structured": {"kind": "regex", "value": "(a{400}){400}"}}}, "sampling.structured"),
        ({"sampling": SAMPLING | {"unknown": 1}}, "sampling.unknown"),
        ({"prompt_tokens": 1, "sampling": SAMPLING | {"max_new_tokens": 2}}, "sampling.max_new_tokens"),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], field: str) -> None:
    with pytest.raises(BadRequest, match=f"^{field}"):
        decode(**change)


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100000, b'{"tokens": ' + b"[" * 100000, b"9" * 10000]
)
def test_what_is_no_request_is_refused_and_never_crashes(body: bytes) -> None:
    with pytest.raises(BadRequest):
        parse(DecodeRequest, body)


def test_a_prefill_takes_a_ticket_or_none_but_says_so() -> None:
    content = {k: v for k, v in GOOD.items() if k != "mode"}
    assert parse(PrefillRequest, json.dumps(content | {"ticket": None}).encode()).ticket is None
    with pytest.raises(BadRequest, match="ticket"):
        parse(PrefillRequest, json.dumps(content).encode())


@pytest.mark.parametrize(("within_s", "due_s"), [(None, None), (1.5, 11.5), (-3, 7.0), (0, 10.0)])
def test_a_first_token_is_due_so_many_seconds_after_the_request_came(
    within_s: float | None, due_s: float | None
) -> None:
    content = {k: v for k, v in GOOD.items() if k != "mode"} | {"ticket": None, "first_token_within_s": within_s}
    assert parse(PrefillRequest, json.dumps(content).encode()).due_s(10.0) == due_s
    assert decode(mode="local", first_token_within_s=within_s).due_s(10.0) == due_s
    assert decode(mode="local").due_s(10.0) is None
    assert decode(mode="remote", first_token_within_s=None).due_s(10.0) is None


def test_only_a_request_for_kv_of_another_worker_has_a_limit_for_prefill_here() -> None:
    assert decode(mode="remote", local_up_to_tokens=7).local_up_to_tokens == 7
    assert decode(mode="remote").local_up_to_tokens is None
    for values in ({"mode": "local", "local_up_to_tokens": 7}, {"mode": "remote", "local_up_to_tokens": -1}):
        with pytest.raises(BadRequest, match="local_up_to_tokens"):
            decode(**values)


def test_what_prefill_is_told_of_belongs_to_kv_that_it_sends() -> None:
    sent = decode(prefill_incarnation="p1", prefill_transports={"tcp": ""})
    assert (sent.prefill_incarnation, sent.prefill_transports) == ("p1", {"tcp": ""})
    with pytest.raises(BadRequest, match=r"^prefill_incarnation: only with mode remote"):
        decode(mode="local", prefill_incarnation="p1")
    with pytest.raises(BadRequest, match=r"^prefill_transports: only with prefill_incarnation"):
        decode(prefill_transports={"tcp": ""})


def test_a_notice_to_leave_has_a_lease_within_a_day() -> None:
    assert (parse_drain(b"{}").lease_s, parse_drain(b'{"lease_s": 0}').lease_s) == (30.0, 0.0)
    for body in (b'{"lease_s": -1}', b'{"lease_s": 86401}', b'{"lease": 1}'):
        with pytest.raises(BadRequest, match=r"^lease"):
            parse_drain(body)


def test_a_message_with_text_of_the_client_does_not_break_the_line() -> None:
    line = encode_line(event_json(ErrorEvent("internal", "a\nb", retryable=True)))
    assert line.count(b"\n") == 1
    assert json.loads(line) == {"type": "error", "code": "internal", "message": "a\nb", "retryable": True}


@given(st.integers(0, 1000), st.integers(0, 10**6))
def test_a_token_without_logprobs_carries_none(index: int, token: int) -> None:
    assert event_json(TokenEvent(index, token)) == {"type": "token", "index": index, "token": token}
    full = event_json(TokenEvent(index, token, -0.5, ((token, -0.5),)))
    assert (full["logprob"], full["top_logprobs"]) == (-0.5, [[token, -0.5]])
    assert event_json(TokenEvent(index, token, cached_tokens=0))["cached_tokens"] == 0
    assert event_json(EndEvent("stop")) == {"type": "end", "finish_reason": "stop"}


ROOM = {"free_tokens": 5, "total_tokens": 9, "free_seats": 1, "total_seats": 2, "step_s": 0.5}


def test_a_room_is_read_field_by_field() -> None:
    assert parse_room(json.dumps(ROOM).encode()).to_room() == Room(5, 9, 1, 2, 0.5)
    for change in ({"free_tokens": -1}, {"free_seats": 1.5}, {"step_s": 86401}, {"more": 1}):
        with pytest.raises(BadRequest, match=next(iter(change))):
            parse_room(json.dumps(ROOM | change).encode())


def test_a_role_comes_with_the_time_to_change_to_it() -> None:
    assert parse_role(b'{"role": "decode"}').deadline_s == 60.0
    assert parse_role(b'{"role": "prefill", "deadline_s": 5}').role == "prefill"
    for body, field in ((b'{"role": "boss"}', "role"), (b'{"role": "decode", "deadline_s": -1}', "deadline_s")):
        with pytest.raises(BadRequest, match=field):
            parse_role(body)


@pytest.mark.parametrize(
    ("kind", "value"), [("regex", "a+"), ("grammar", "start: x"), ("json_schema", "{}"), ("choice", '["a", "b"]')]
)
def test_the_form_of_the_output_reaches_the_engine(kind: str, value: str) -> None:
    params = decode(sampling=SAMPLING | {"structured": {"kind": kind, "value": value}}).sampling.to_params()
    assert params.structured == Structured(kind, value)


@pytest.mark.parametrize("value", ["[]", "{}", '["a", 1]', '["a", ""]', "[", '"a"', "[" * 60_000])
def test_choices_are_a_list_of_strings_and_anything_else_is_refused(value: str) -> None:
    with pytest.raises(BadRequest, match=r"^sampling\.structured"):
        decode(sampling=SAMPLING | {"structured": {"kind": "choice", "value": value}})


@pytest.mark.parametrize(
    ("event", "end"),
    [
        (TokenEvent(0, 5), False),
        (TokenEvent(1, 6, -0.5, ((6, -0.5),)), False),
        (EndEvent("stop"), True),
        (ErrorEvent("internal", "a", retryable=True), True),
    ],
)
def test_a_line_says_whether_it_is_the_last_one(event: Event, end: bool) -> None:
    assert encoded(event_json(event)) == (encode_line(event_json(event)), end)


def test_the_short_way_to_write_a_token_writes_the_same() -> None:
    for index, token in ((0, 0), (12, 345), (1 << 20, (1 << 31) - 1)):
        assert encode_token(index, token) == encode_line(event_json(TokenEvent(index, token)))


def test_a_request_may_name_the_weights_that_it_is_for() -> None:
    assert decode().digest is None
    assert decode(digest="sha").digest == "sha"
    with pytest.raises(BadRequest, match="digest"):
        decode(digest="")
