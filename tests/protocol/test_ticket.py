"""Tests of tickets, which are valid only as the decode worker has signed them."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.ticket import (
    Ticket,
    TicketError,
    _mac,
    begin_proof,
    check_held,
    prefix_hash,
    sign,
    token_hash,
    verify,
)
from disagg_wire.cluster_key import bearer_of

KEY = b"k" * 32
TICKET = sign(
    KEY, Ticket("ab" * 16, "cd" * 16, 0, "c0de", "uid/boot", "10.0.0.7", 9000, 3, token_hash([1, 2, 3]), 30.0)
)


def test_a_signed_ticket_is_read_back_as_it_was() -> None:
    assert verify(KEY, TICKET.to_json()) == TICKET


def test_another_key_makes_another_signature() -> None:
    with pytest.raises(TicketError, match=r"ticket\.mac"):
        verify(b"x" * 32, TICKET.to_json())


BOUND = sign(KEY, replace(TICKET, prefill_incarnation="uid/boot", integrity="mac"))


OFFERED = sign(KEY, replace(BOUND, offer='{"agent":"a"}'))


def test_an_offer_is_in_the_ticket_if_there_is_one() -> None:
    assert verify(KEY, OFFERED.to_json()) == OFFERED
    assert OFFERED.to_json().keys() - BOUND.to_json().keys() == {"offer"}
    raw = BOUND.to_json() | {"offer": ""}
    with pytest.raises(TicketError, match="must not be empty"):
        verify(KEY, raw | {"mac": _mac(KEY, raw)})


def test_a_bound_ticket_is_read_back_as_it_was_and_no_other_one_has_its_fields() -> None:
    assert verify(KEY, BOUND.to_json()) == BOUND
    assert (BOUND.bound, TICKET.bound) == (True, False)
    of_bound = {"prefill_incarnation", "integrity", "held_blocks", "held_hash"}
    assert BOUND.to_json().keys() - TICKET.to_json().keys() == of_bound


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prefill_incarnation": "", "integrity": ""}, "prefill_incarnation"),
        ({"integrity": "none"}, "integrity: must be one of mac, crc32c"),
        ({"integrity": 1}, "integrity"),
        ({"prefill_incarnation": None}, "prefill_incarnation"),
        ({"held_blocks": 1}, "held_blocks"),
        ({"held_hash": "ab"}, "held_blocks"),
        ({"held_blocks": -1, "held_hash": "ab"}, "held_blocks"),
        ({"held_blocks": "1"}, "held_blocks"),
    ],
)
def test_a_bound_ticket_names_a_worker_and_a_check(values: dict[str, Any], message: str) -> None:
    raw = BOUND.to_json() | values
    with pytest.raises(TicketError, match=message):
        verify(KEY, raw | {"mac": _mac(KEY, raw)})


@pytest.mark.parametrize("name", [f.name for f in fields(Ticket)])
def test_a_change_to_any_field_is_noticed(name: str) -> None:
    raw = OFFERED.to_json()
    raw[name] = raw[name] + ("0" if isinstance(raw[name], str) else 1)
    with pytest.raises(TicketError):
        verify(KEY, raw)


@pytest.mark.parametrize("name", [f.name for f in fields(Ticket) if f.name != "offer"])
def test_a_missing_field_is_named(name: str) -> None:
    raw = OFFERED.to_json()
    del raw[name]
    with pytest.raises(TicketError, match=name):
        verify(KEY, raw)


@pytest.mark.parametrize(
    "change",
    [
        {"extra": 1},
        {"port": "9000"},
        {"port": True},
        {"tokens": 1.5},
        {"mac": None},
        {"mac": "é" * 64},
        {"host": ["10.0.0.7"]},
        {"mac": "\ud800"},
    ],
)
def test_wrong_types_and_strange_text_are_refused_and_never_crash(change: dict[str, Any]) -> None:
    with pytest.raises(TicketError):
        verify(KEY, TICKET.to_json() | change)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_whatever_is_not_a_ticket_is_refused(raw: Any) -> None:
    with pytest.raises(TicketError):
        verify(KEY, raw)


@given(st.lists(st.integers(0, 2**31 - 1)), st.lists(st.integers(0, 2**31 - 1)))
def test_token_hashes_are_equal_only_for_equal_tokens(a: list[int], b: list[int]) -> None:
    assert (token_hash(a) == token_hash(b)) == (a == b)


def test_the_keys_uses_do_not_mix() -> None:
    assert bearer_of(KEY) != begin_proof(KEY, b"disagg-http-v1", "") or bearer_of(KEY) != asdict(TICKET)["mac"]
    assert begin_proof(KEY, b"1" * 32, "a") != begin_proof(KEY, b"2" * 32, "a")
    assert begin_proof(KEY, b"1" * 32, "\ud800")  # Text that is not valid UTF-8 must not raise.


TOKENS = list(range(50, 90))


def test_the_hash_of_a_prefix_depends_on_all_that_its_kv_depends_on() -> None:
    found = {
        prefix_hash("compat", "", TOKENS, 16, 2),
        prefix_hash("compat", "", TOKENS, 16, 1),
        prefix_hash("compat", "", TOKENS, 8, 2),
        prefix_hash("other", "", TOKENS, 16, 2),
        prefix_hash("compat", "sql", TOKENS, 16, 2),
        prefix_hash("compat", "", [TOKENS[0] + 1, *TOKENS[1:]], 16, 2),
        prefix_hash("compat", "", [*TOKENS[:31], TOKENS[31] + 1], 16, 2),
        prefix_hash("compat", "", TOKENS, 16, 0),
    }
    assert len(found) == 8
    assert "" in found
    assert prefix_hash("compat", "", TOKENS, 16, 2) == prefix_hash("compat", "", TOKENS[:32], 16, 2)


@pytest.mark.parametrize(
    ("blocks", "of", "message"),
    [
        (0, "", None),
        (2, "compat", None),
        (2, "other weights", "held_hash"),
        (3, "compat", "leave none to send"),
        (2, "", "held_hash"),
    ],
)
def test_what_decode_holds_is_the_start_of_these_tokens_and_not_all_of_them(
    blocks: int, of: str, message: str | None
) -> None:
    held_hash = prefix_hash(of, "", TOKENS, 16, blocks) if of else ""
    ticket = replace(BOUND, held_blocks=blocks, held_hash=held_hash)
    if message is None:
        check_held(ticket, "compat", "", TOKENS, 16)
        return
    with pytest.raises(TicketError, match=message):
        check_held(ticket, "compat", "", TOKENS, 16)
