"""Tests of hand-over messages: they are read as they were signed, or not at all."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_adapter.server.handover_message import HandOverMessage, NotSigned, _mac, read_message, sign_message
from disagg_protocol.ticket import Ticket, TicketError, sign, token_hash

KEY = b"k" * 32
TICKET = sign(
    KEY, Ticket("ab" * 16, "cd" * 16, 0, "c0de", "uid/boot", "10.0.0.7", 9000, 3, token_hash([1, 2, 3]), 30.0)
)
MESSAGE = HandOverMessage(TICKET, "uid/epoch", "vllm", {"blocks": [[1, 2]], "peer": "p"}, 17, 16, 0.5)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


def sent(message: HandOverMessage = MESSAGE) -> Any:
    """Return the body as it arrives."""
    return json.loads(json.dumps(sign_message(KEY, message)))


@given(
    parameters=st.dictionaries(st.text(max_size=8), PLAIN, max_size=3),
    first=st.none() | st.integers(0, 2**31),
    cached=st.none() | st.integers(0, 2**31),
    age_s=st.floats(0, 86399),
    engine=st.text(max_size=8),
)
def test_a_message_survives_its_trip(
    parameters: dict[str, Any], first: int | None, cached: int | None, age_s: float, engine: str
) -> None:
    message = HandOverMessage(TICKET, "uid/epoch", engine, parameters, first, cached, age_s)
    assert read_message(KEY, sent(message)) == message


@pytest.mark.parametrize("name", sorted(sign_message(KEY, MESSAGE)))
@given(value=PLAIN)
def test_a_change_to_any_field_is_noticed(name: str, value: Any) -> None:
    body = sent()
    if json.dumps(body[name], sort_keys=True) == json.dumps(value, sort_keys=True):
        return
    body[name] = value
    with pytest.raises(NotSigned, match="mac"):
        read_message(KEY, body)


@given(at=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_a_changed_byte_is_noticed(at: int, flip: int) -> None:
    raw = bytearray(json.dumps(sign_message(KEY, MESSAGE)).encode())
    raw[at % len(raw)] ^= flip
    try:
        body = json.loads(bytes(raw).decode())
    except ValueError:
        return
    if body == sent():
        return  # white space
    with pytest.raises(TicketError):
        read_message(KEY, body)


@pytest.mark.parametrize("name", sorted(sign_message(KEY, MESSAGE)))
def test_a_missing_field_is_named(name: str) -> None:
    body = sent()
    del body[name]
    with pytest.raises(TicketError, match=name):
        read_message(KEY, body)


def test_an_unknown_field_is_named() -> None:
    with pytest.raises(TicketError, match="extra"):
        read_message(KEY, sent() | {"extra": 1})


@pytest.mark.parametrize("key", [b"x" * 32, b""])
def test_another_key_makes_another_signature(key: bytes) -> None:
    with pytest.raises(NotSigned):
        read_message(key, sent())


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ticket": TICKET.to_json() | {"host": "10.0.0.8"}}, "ticket"),
        ({"ticket": None}, "ticket"),
        ({"parameters": [1]}, "parameters"),
        ({"engine": 1}, "engine"),
        ({"prefill_incarnation": None}, "prefill_incarnation"),
        ({"first_token": -1}, "first_token"),
        ({"first_token": True}, "first_token"),
        ({"first_token": 1.5}, "first_token"),
        ({"cached_tokens": "3"}, "cached_tokens"),
        ({"age_s": -0.1}, "age_s"),
        ({"age_s": True}, "age_s"),
        ({"age_s": "1"}, "age_s"),
        ({"age_s": 1e9}, "age_s"),
    ],
)
def test_a_peer_with_the_key_that_sends_nonsense_is_refused_too(change: dict[str, Any], named: str) -> None:
    body = {name: value for name, value in (sent() | change).items() if name != "mac"}
    with pytest.raises(TicketError, match=named):
        read_message(KEY, body | {"mac": _mac(KEY, body)})


@pytest.mark.parametrize("mac", [None, 1, "", "é" * 64, "\ud800"])
def test_a_strange_mac_is_refused_and_never_crashes(mac: Any) -> None:
    with pytest.raises(NotSigned):
        read_message(KEY, sent() | {"mac": mac})


@given(PLAIN)
def test_whatever_is_no_message_is_refused(raw: Any) -> None:
    with pytest.raises(TicketError):
        read_message(KEY, raw)
