"""Tests of stop strings in text that comes in pieces."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from disagg_router.text.stop_strings import StopStrings


@st.composite
def split(draw: st.DrawFn) -> list[str]:
    return draw(st.lists(st.text("abc", max_size=4), max_size=12))


def cut(text: str, stops: list[str]) -> str:
    """Return the text before the first stop string.

    Of several stop strings, the one that is complete first wins: the rest of the text was not
    generated then.
    """
    ends = [(at + len(s), at) for s in stops if s and (at := text.find(s)) >= 0]
    if not ends:
        return text
    end = min(ends)[0]
    return text[: min(at for s in stops if s and (at := text[:end].find(s)) >= 0)]


@given(split(), st.lists(st.text("abc", max_size=4), max_size=3))
@example(["abcd"], ["abcd", "c"])
@example(["aaa", "b"], ["aab"])
def test_any_split_gives_the_same_as_the_whole_text(pieces: list[str], stops: list[str]) -> None:
    text = "".join(pieces)
    for parts in (pieces, [text], list(text)):
        machine = StopStrings(stops)
        assert "".join(machine.feed(part) for part in parts) + machine.flush() == cut(text, stops)
        assert machine.stopped == any(s and s in text for s in stops)


@given(split(), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3))
def test_what_was_shown_never_holds_a_stop_string_nor_is_taken_back(pieces: list[str], stops: list[str]) -> None:
    machine, shown, fed = StopStrings(stops), "", ""
    for piece in pieces:
        shown, fed = shown + machine.feed(piece), fed + piece
        assert not any(s in shown for s in stops)
        assert fed.startswith(shown)
        # No more text is held than could begin a stop string.
        assert machine.stopped or len(fed) - len(shown) < max((len(s) for s in stops), default=1)


@pytest.mark.parametrize("stops", [[], [""], ["zzz"]])
def test_without_a_stop_string_all_text_goes_through(stops: list[str]) -> None:
    machine = StopStrings(stops)
    assert machine.feed("hello z") + machine.flush() == "hello z"
    assert not machine.stopped


def test_after_a_stop_nothing_is_shown() -> None:
    machine = StopStrings(["b"])
    assert machine.feed("abc") == "a"
    assert machine.feed("abc") == machine.flush() == ""
