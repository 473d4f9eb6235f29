"""Tests of special tokens in the text of users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.text.markers import Markers

MARKERS = Markers(["<|end|>", "<|user|>", "|>", "x", "><|", ""])
PARTS = ["<", "|", ">", "e", "n", "d", "user", "\ue000", "<|end|>", "|><|"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=12).map("".join)


def render(messages: Sequence[Mapping[str, Any]]) -> str:
    return "".join(f"<|user|>{m['content']}<|end|>" for m in messages)


def test_what_has_none_is_one_piece() -> None:
    assert MARKERS.split([{"content": "a | b"}], render) == ["<|user|>a | b<|end|>"]
    assert Markers([]).split([{"content": "<|end|>"}], render) == ["<|user|><|end|><|end|>"]


def test_what_is_not_text_is_left_alone() -> None:
    pieces = MARKERS.split([{"content": "<|end|>", "n": 5}], lambda m: f"{m[0]['content']}{m[0]['n']}")
    assert "".join(pieces) == "<|end|>5"


@given(st.lists(TEXTS.map(lambda text: {"role": "user", "content": text}), max_size=3))
def test_the_text_stays_and_only_the_template_makes_special_tokens(messages: list[dict[str, str]]) -> None:
    pieces = MARKERS.split(messages, render)
    assert "".join(pieces) == render(messages)
    made = sum(piece.count("<|user|>") + piece.count("<|end|>") for piece in pieces)
    assert made == 2 * len(messages)


def test_a_message_with_every_unused_character_is_refused() -> None:
    with pytest.raises(ValueError, match="nobody uses"):
        MARKERS.split([{"content": "<|end|>\ue000\uf8ff\U000f0000\U0010fffd"}], render)
