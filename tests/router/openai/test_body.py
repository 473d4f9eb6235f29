"""Tests of the JSON of a body, whatever it is."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.errors import ApiError
from disagg_router.openai.body import MAX_CONTAINERS, MAX_NAMES, MAX_VALUES, _outside_of_strings, loads
from disagg_router.openai.schema import ChatRequest, CompletionRequest, RequestT, parse

MIB = 1 << 20


@contextmanager
def peak() -> Iterator[list[int]]:
    """Yield a list that has, at the end of the block, the most bytes that were allocated in it."""
    found: list[int] = []
    tracemalloc.start()
    try:
        yield found
        found.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def test_a_body_is_json_that_can_be_sent_on() -> None:
    assert loads(b'{"a": "\\ud83d\\ude00"}') == {"a": "\U0001f600"}
    assert loads(b'\xef\xbb\xbf{"a": 1}') == {"a": 1}


@pytest.mark.parametrize(
    "raw",
    [b"", b"{", b"\xff", b"nothing", b'{"a": "\\ud83d"}', b"[" * 30_000, b'{"a": "\xed\xa0\x80"}', b"1" * 5000]
    + ['{"a": 1}'.encode(encoding) for encoding in ("utf-16", "utf-32")],
)
def test_a_body_that_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        loads(raw)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize(
    ("raw", "what"),
    [
        (b"[" + b"1," * MAX_VALUES + b"1]", "values"),
        (b"[" + b"[]," * MAX_CONTAINERS + b"1]", "objects and lists"),
        (b"[" + b'{"a":1},' * (MAX_NAMES + 1) + b"1]", "fields"),
        (b"[" * 8 * MIB, "objects and lists"),
        (b"[" + b'"",a,' * (MAX_VALUES // 2 + 1) + b"1]", "values"),
        (b'"' + b"x" * MIB + b'",' + b"[]," * (MAX_CONTAINERS + 1), "objects and lists"),
    ],
)
def test_what_would_become_too_many_objects_is_refused_before_it_does(raw: bytes, what: str) -> None:
    with peak() as bytes_used, pytest.raises(ApiError, match=what) as caught:
        loads(raw)
    assert (caught.value.status, caught.value.code) == (413, "body_too_large")
    assert bytes_used[0] < 3 * len(raw) + 8 * MIB


@pytest.mark.parametrize("text", [",:[]{}" * MIB, '\\",:[{' * MIB, "\\" * MIB, "\\" * MIB + '"' + ":" * MIB])
def test_a_text_may_hold_whatever_it_likes(text: str) -> None:
    assert loads(json.dumps({"prompt": text}).encode()) == {"prompt": text}


LETTERS = st.characters(exclude_categories=["Cs"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(LETTERS, max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(LETTERS, max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES, st.booleans())
def test_every_json_is_read_as_it_is(value: object, escaped: bool) -> None:
    assert loads(json.dumps(value, ensure_ascii=escaped).encode()) == value


@given(VALUES)
def test_what_is_counted_is_what_stands_outside_of_strings(value: object) -> None:
    text = json.dumps(value)

    def names(inner: object) -> int:
        if isinstance(inner, list):
            return sum(map(names, inner))
        return len(inner) + sum(map(names, inner.values())) if isinstance(inner, dict) else 0

    assert "".join(_outside_of_strings(text)).count(":") == names(value)


CHAT = b'{"model":"m","messages":[{"role":"user","content":['


@pytest.mark.parametrize(
    ("kind", "raw"),
    [
        (ChatRequest, CHAT + b",".join([b'{"type":"image_url"}'] * 30_000) + b"]}]}"),
        (ChatRequest, CHAT + b",".join([b"1"] * MIB) + b"]}]}"),
        (CompletionRequest, b'{"model":"m","prompt":[' + b"1," * MIB + b"1.5]}"),
        (CompletionRequest, b'{"model":"m","prompt":[' + b'"",' * MIB + b"1]}"),
    ],
)
def test_of_many_wrong_values_one_is_refused_and_not_all_are_listed(kind: type[RequestT], raw: bytes) -> None:
    content = loads(raw)
    with peak() as bytes_used, pytest.raises(ApiError):
        parse(kind, content)
    assert bytes_used[0] < MIB
