"""Tests of the words by which clients learn of their limits."""

from __future__ import annotations

import pytest

from disagg_wire.rate_limits import Limited, header_of, span_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-1, "0ms"), (0, "0ms"), (0.0123, "12ms"), (0.9999, "1s"), (1, "1s"), (59.5, "59.5s"), (60, "1m0s"),
     (360, "6m0s"), (3661.25, "61m1.25s")],
)  # fmt: skip
def test_spans_of_time_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert span_text(seconds) == text


def test_headers() -> None:
    assert header_of("remaining", Limited.TOKENS) == "x-ratelimit-remaining-tokens"
