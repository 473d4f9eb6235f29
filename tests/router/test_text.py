"""Text to tokens and back, with a tokenizer of one token a byte."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fakes.token_worker import ASSISTANT, END, FIRST_BYTE, TEMPLATE, USER, tokenizer_json

from disagg_router.errors import ApiError
from disagg_router.text import Detokenizer, Text

FILES: dict[str, Any] = {"digest": "m", "tokenizer_json": tokenizer_json(), "tokenizer_config": {}, "chat_template": TEMPLATE}
TEXT = Text(FILES)


@given(st.text(max_size=40))
def test_the_pieces_make_up_the_text_and_no_piece_holds_half_a_character(wanted: str) -> None:
    detokenizer = Detokenizer(TEXT)
    pieces = [detokenizer.feed(t) for t in TEXT.encode(wanted, special=False)]
    assert "".join(pieces) + detokenizer.flush() == wanted
    assert all("\ufffd" not in p for p in pieces) or "\ufffd" in wanted


@given(st.binary(max_size=60))
def test_bytes_that_are_no_text_are_shown_all_the_same_and_never_lost(raw: bytes) -> None:
    detokenizer = Detokenizer(TEXT)
    shown = "".join(detokenizer.feed(FIRST_BYTE + b) for b in raw) + detokenizer.flush()
    assert [c for c in shown if c.isascii()] == [c for c in raw.decode(errors="replace") if c.isascii()]


def test_endless_broken_bytes_are_not_held_back_for_ever() -> None:
    detokenizer = Detokenizer(TEXT)
    assert "".join(detokenizer.feed(FIRST_BYTE + 0x80) for _ in range(40))


def test_special_tokens_are_not_shown() -> None:
    detokenizer = Detokenizer(TEXT)
    assert [detokenizer.feed(t) for t in (FIRST_BYTE + 65, END, FIRST_BYTE + 66)] == ["A", "", "B"]


def test_a_chat_is_what_the_template_makes_of_it() -> None:
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    a, b, c = (FIRST_BYTE + ord(x) for x in "abc")
    assert TEXT.encode_chat(messages) == [USER, a, ASSISTANT, b, USER, c, ASSISTANT]


@pytest.mark.parametrize(
    "template",
    ["{{ raise_exception('no system role') }}", "{{ messages[0].content + 1 }}", "{{ ''.__class__.__mro__ }}", "{{ range(10**9) | list }}",
     "{{ messages.append(1) }}", "{% for i in range(99999) %}{% for j in range(99999) %}{{ undefined.x }}{% endfor %}{% endfor %}"],
)  # fmt: skip
def test_a_template_that_refuses_or_misbehaves_makes_a_400(template: str) -> None:
    text = Text(FILES | {"chat_template": template})
    with pytest.raises(ApiError) as caught:
        text.encode_chat([{"role": "user", "content": "a"}])
    assert caught.value.status == 400


def test_without_a_template_chat_is_refused_and_completions_work() -> None:
    text = Text(FILES | {"chat_template": None})
    with pytest.raises(ApiError, match="no chat template"):
        text.encode_chat([{"role": "user", "content": "a"}])
    assert text.encode("a", special=True) == [FIRST_BYTE + 97]


@pytest.mark.parametrize("bad", ["", "{}", "[]", '{"model": 5}'])
def test_an_unusable_tokenizer_is_a_value_error(bad: str) -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        Text(FILES | {"tokenizer_json": bad})
