"""Tests of the times that the bytes of a stream tell."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.objectives import Objectives
from disagg_router.openai.stream_times import StreamTimes

BOTH = Objectives(1.0, 0.1)


def event(**content: Any) -> bytes:
    return b"data: " + json.dumps(content).encode() + b"\n\n"


def token(text: str = "a", index: int = 0, **more: Any) -> bytes:
    return event(choices=[{"index": index, "delta": {"content": text}}], **more)


ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
DONE = b"data: [DONE]\n\n"


def fed(*timed: tuple[float, bytes]) -> StreamTimes:
    found = StreamTimes(0.0)
    for at_s, piece in timed:
        found.feed(piece, at_s)
    return found


def test_the_first_text_is_the_first_token() -> None:
    found = fed((0.1, ROLE), (0.5, token()), (0.6, token()), (0.8, token()), (0.9, DONE))
    assert (found.ttft_s, found.tokens, found.ended, found.failed) == (0.5, 3, True, False)
    assert found.tpot_s == pytest.approx(0.15)


@pytest.mark.parametrize(
    "choice",
    [
        {"text": "a"},
        {"delta": {"reasoning_content": "a"}},
        {"delta": {"reasoning": "a"}},
        {"delta": {"tool_calls": [{}]}},
    ],
)
def test_all_kinds_of_text(choice: dict[str, Any]) -> None:
    assert fed((1.0, event(choices=[choice]))).tokens == 1


def test_usage_tells_the_number_of_tokens() -> None:
    found = fed((1.0, token()), (2.0, token()), (2.0, event(choices=[], usage={"completion_tokens": 11})), (2.0, DONE))
    assert found.tpot_s == pytest.approx(0.1)
    several = fed((1.0, token()), (1.5, token(index=1)), (2.0, token()), (2.0, event(usage={"completion_tokens": 11})))
    assert several.tokens == 2
    assert fed((1.0, token(usage=None)), (1.0, token(usage={"completion_tokens": "7"}))).tokens == 2


@given(st.lists(st.integers(1, 40), max_size=30))
def test_pieces_may_end_anywhere(cuts: list[int]) -> None:
    stream, found = ROLE + token("ä") + token() + DONE, StreamTimes(0.0)
    at = 0
    for cut in cuts:
        found.feed(stream[at : at + cut], 1.0)
        at += cut
    found.feed(stream[at:], 1.0)
    assert (found.tokens, found.ended) == (2, True)


def test_what_is_no_event_tells_nothing() -> None:
    found = fed((1.0, b': ping\n\ndata: {\n\ndata: [1]\n\ndata: {"choices": [7]}\n\ndata: ' + b"[" * 100_000 + b"\n"))
    assert (found.tokens, found.ttft_s, found.tpot_s) == (0, None, None)


def test_a_line_without_end_is_not_kept() -> None:
    found = StreamTimes(0.0)
    for _ in range(3):
        found.feed(b"data: " + b"x" * (1 << 20), 1.0)
    assert len(found._rest) <= 1 << 20
    found.feed(b"\n" + token() + DONE, 2.0)
    assert (found.tokens, found.ended) == (1, True)


@pytest.mark.parametrize(
    ("found", "objectives", "kept"),
    [
        (fed((0.5, token()), (0.55, token()), (0.6, DONE)), BOTH, True),
        (fed((1.5, token()), (1.6, DONE)), BOTH, False),
        (fed((0.5, token()), (0.7, token()), (0.7, DONE)), BOTH, False),
        (fed((0.5, token()), (0.7, token()), (0.7, DONE)), Objectives(), True),
        (fed((0.5, token())), BOTH, None),
        (fed((0.5, event(error={"message": "no"}))), BOTH, False),
        (fed((0.5, DONE)), BOTH, False),  # at 9 s: there was no token at all
    ],
)
def test_objectives(found: StreamTimes, objectives: Objectives, kept: bool | None) -> None:
    assert found.kept(objectives, 9.0) is kept


def test_a_client_that_leaves_tells_something_if_it_was_late() -> None:
    assert fed((0.1, ROLE)).kept(BOTH, 0.9) is None
    assert fed((0.1, ROLE)).kept(BOTH, 1.1) is False
