"""Stop strings: cut before the first that occurs, whatever pieces the text comes in; show nothing that may be part of one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from disagg_router.stops import StopStrings

texts = st.text("ab", max_size=30)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def cut(text: str, stop_strings: list[str]) -> str:
    """As a stream would be: the stop string whose end comes first counts, then the one that begins first."""
    for end in range(len(text) + 1):
        starts = [end - len(s) for s in stop_strings if text[:end].endswith(s)]
        if starts:
            return text[: min(starts)]
    return text


@given(st.lists(st.sampled_from("ab"), max_size=30), stops)
def test_fed_letter_by_letter_the_text_ends_before_the_first_stop_string(letters: list[str], stop_strings: list[str]) -> None:
    s = StopStrings(stop_strings)
    shown = "".join(s.feed(x) for x in letters) + s.flush()
    assert shown == cut("".join(letters), stop_strings)
    assert s.stopped == any(x in "".join(letters) for x in stop_strings)


@given(st.lists(texts, max_size=6), stops)
def test_in_pieces_nothing_of_a_stop_string_is_ever_shown(pieces: list[str], stop_strings: list[str]) -> None:
    s = StopStrings(stop_strings)
    whole = "".join(pieces)
    shown = "".join(s.feed(p) for p in pieces) + s.flush()
    assert whole.startswith(shown)
    assert not any(x in shown for x in stop_strings)
    assert s.stopped or shown == whole


def test_text_that_may_begin_a_stop_string_waits_for_what_comes_next() -> None:
    s = StopStrings(["\n\nUser:"])
    assert [s.feed(x) for x in ("ok\n", "\nUs", "e it", "\n\nUser", ": no")] == ["ok", "", "\n\nUse it", "", ""]
    assert s.stopped
    assert s.flush() == ""


def test_after_the_stop_nothing_is_shown() -> None:
    s = StopStrings(["x"])
    assert s.feed("axb") == "a"
    assert s.feed("c") == s.flush() == ""
