"""Tests of SGLang's module that no conversation shows."""

from __future__ import annotations

from typing import Any

import pytest
from tests.adapter.engines.player import OPTIONS
from tests.adapter.engines.works import work

from disagg_adapter.engines import sglang
from disagg_adapter.engines.contract import EngineOptions, HandOver
from disagg_adapter.engines.http_client import EngineHttp
from disagg_adapter.engines.sglang import Sglang
from disagg_protocol.errors import InvalidInput

GOOD = {"host": "10.0.0.7", "port": 8998, "room": (1 << 63) - 1}


def engine() -> Sglang:
    return Sglang(EngineHttp("http://127.0.0.1:1"), EngineOptions(**OPTIONS | {"role": "decode"}))


def test_a_good_hand_over() -> None:
    engine().check_handover(GOOD)
    engine().check_handover(GOOD | {"host": "fd00::7"})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"room": 0}, "parameters.room"),
        ({"room": 1 << 63}, "parameters.room"),
        ({"room": True}, "parameters.room"),
        ({"port": "8998"}, "parameters.port"),
        ({"port": 0}, "parameters.port"),
        ({"host": "http://10.0.0.7/x"}, "parameters.host"),
        ({"host": "2.2.2.2"}, "parameters.host"),
        ({"host": None}, "parameters.host"),
        ({"bootstrap_room": 5}, "parameters"),
    ],
)
def test_a_bad_hand_over_is_refused_by_the_field(change: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=f"^{field}:"):
        engine().check_handover(GOOD | change)


@pytest.mark.parametrize(
    ("sampling", "field"),
    [
        ({"seed": 1 << 63}, "sampling.seed"),
        ({"repetition_penalty": 2.5}, "sampling.repetition_penalty"),
        ({"max_new_tokens": 1000}, "tokens"),
    ],
)
def test_what_sglang_does_not_take_is_refused_by_the_field(
    sampling: dict[str, Any], field: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = engine()
    monkeypatch.setattr(one, "_longest", 100)
    one.check(work())
    with pytest.raises(InvalidInput, match=f"^{field}:"):
        one.check(work(**sampling))


def test_rooms_are_remembered_up_to_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sglang, "_REMEMBERED_ROOMS", 2)
    one = engine()
    for room in (1, 2, 3):
        one._transfer(HandOver(GOOD | {"room": room}).parameters)
    assert list(one._rooms) == [2, 3]
