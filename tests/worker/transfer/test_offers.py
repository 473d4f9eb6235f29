"""Tests of the offers in tickets: they are read as they were written, or refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.ticket import TicketError
from disagg_worker.transfer.offers import Offer, decode_offer
from disagg_worker.values.kv_blocks import Region

OFFER = Offer("agent", b"\0metadata", "shm", Region(1 << 47, 4096, 100), (3, 99, 0))


@pytest.mark.parametrize("offer", [OFFER, replace(OFFER, region=Region(1, 4096, 100, 3)), replace(OFFER, blocks=())])
def test_an_offer_is_read_as_it_was_written(offer: Offer) -> None:
    assert decode_offer(offer.encode()) == offer


@pytest.mark.parametrize(
    "change",
    [
        {"agent": ""}, {"agent": 3}, {"agent": "a" * 200}, {"metadata": "*"}, {"metadata": 1}, {"transport": "pigeon"},
        {"metadata": "AAAA" * (1 << 15)}, {"region": [1, 2]}, {"region": [1, 0, 100, None]},
        {"region": [-1, 1, 100, 0]},
        {"region": [True, 1, 100, 0]}, {"region": [1, 1, 100, "0"]}, {"blocks": [100]}, {"blocks": [-1]},
        {"blocks": [1.5]}, {"blocks": None}, {"blocks": [1 << 64]},
    ],
)  # fmt: skip
def test_what_is_no_offer_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(TicketError, match="offer"):
        decode_offer(json.dumps(json.loads(OFFER.encode()) | change))


@given(
    st.one_of(
        st.text(),
        st.recursive(st.none() | st.integers(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(json.dumps),
    )
)
def test_whatever_comes_is_refused_and_never_crashes(text: str) -> None:
    with pytest.raises(TicketError):
        decode_offer(text)
