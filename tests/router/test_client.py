"""Lines of a worker's stream."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router import client


async def chunked(chunks: list[bytes]) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk


@given(st.lists(st.binary(max_size=6).map(lambda b: b.replace(b"\r", b"\n")), max_size=10))
async def test_lines_are_what_ends_in_a_line_feed_however_it_was_cut(chunks: list[bytes]) -> None:
    assert [line async for line in client._split(chunked(chunks))] == b"".join(chunks).split(b"\n")[:-1]


async def test_a_line_separator_inside_of_a_string_is_no_end_of_line() -> None:
    line = '{"message": "a\u2028b\x85c\x0bd"}'.encode()
    assert [line async for line in client._split(chunked([line + b"\n"]))] == [line]


async def test_a_line_without_end_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MAX_LINE_BYTES", 100)
    with pytest.raises(ValueError, match="too long"):
        async for _ in client._split(chunked([b"x" * 60, b"y" * 60])):
            pass
