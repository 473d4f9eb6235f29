"""Tests of BEGIN of version 2: the proof covers everything in it, and keys are never equal."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from disagg_protocol.ticket import Ticket, TicketError, sign, token_hash
from disagg_worker.transfer.frames import FrameError
from disagg_worker.transfer.greeting import begin_content, is_bound, session_keys, verify_begin

KEY, CHALLENGE, NONCE = b"k" * 32, b"c" * 32, "ab" * 16
PLAIN = Ticket("ab" * 16, "cd" * 16, 0, "c0de", "d/boot", "10.0.0.7", 9000, 3, token_hash([1, 2, 3]), 30.0)
TICKET = sign(KEY, dataclasses.replace(PLAIN, prefill_incarnation="p/boot", integrity="mac"))


def content(**change: Any) -> dict[str, Any]:
    return begin_content(KEY, CHALLENGE, TICKET, "p/boot", 1, NONCE) | change


def test_both_ends_derive_the_same_keys() -> None:
    sent = content()
    begin = verify_begin(KEY, CHALLENGE, sent)
    assert (begin.ticket, begin.connection) == (TICKET, 1)
    assert begin.keys == session_keys(KEY, CHALLENGE, sent["proof"])
    assert is_bound(sent)
    assert not is_bound({"ticket": {}, "prefill_incarnation": "", "proof": ""})


def test_no_two_connections_have_the_same_key() -> None:
    others = [
        (CHALLENGE, begin_content(KEY, CHALLENGE, TICKET, "p/boot", 0, NONCE)),
        (CHALLENGE, begin_content(KEY, CHALLENGE, TICKET, "p/boot", 1, "cd" * 16)),
        (b"d" * 32, begin_content(KEY, b"d" * 32, TICKET, "p/boot", 1, NONCE)),
        (CHALLENGE, content()),
    ]
    keys = [session_keys(KEY, challenge, c["proof"]) for challenge, c in others]
    assert len({key for pair in keys for key in (pair.to_decode, pair.to_prefill)}) == 2 * len(others)


@pytest.mark.parametrize(
    "change",
    [
        {"connection": 0},
        {"nonce": "cd" * 16},
        {"prefill_incarnation": "q/boot"},
        {"ticket": None},
        {"ticket": TICKET.to_json() | {"port": 1}},
        {"proof": None},
        {"proof": "\ud800"},
        {"proof": "0" * 64},
        {"more": 1},
    ],
)
def test_whatever_is_changed_the_proof_does_not_match(change: dict[str, Any]) -> None:
    with pytest.raises(FrameError, match="proof"):
        verify_begin(KEY, CHALLENGE, content(**change))
    with pytest.raises(FrameError, match="proof"):
        verify_begin(KEY, b"d" * 32, content())


def _proven(**change: Any) -> dict[str, Any]:
    """Return a BEGIN of a peer that has the key and says something wrong."""
    from disagg_worker.transfer import greeting

    unsigned = {name: value for name, value in content(**change).items() if name != "proof" and value is not ...}
    return unsigned | {"proof": greeting._proof(KEY, CHALLENGE, unsigned)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"connection": 4}, "connection"),
        ({"connection": -1}, "connection"),
        ({"connection": True}, "connection"),
        ({"connection": "1"}, "connection"),
        ({"nonce": ...}, "nonce"),
        ({"more": 1}, "more"),
        ({"prefill_incarnation": "q/boot"}, "another worker"),
        ({"ticket": sign(KEY, PLAIN).to_json(), "prefill_incarnation": ""}, "another worker"),
        ({"ticket": {}}, "ticket"),
    ],
)
def test_a_wrong_begin_is_refused_by_its_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises((FrameError, TicketError), match=message):
        verify_begin(KEY, CHALLENGE, _proven(**change))
