"""The value of the label by which the operator tells the routers of a canary."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_wire.canary import CanaryWord, name_of, read_word

WHOLE = CanaryWord(10, "0a1b2c3d4e", ("9f8e7d6c5b",), 1.0, 0.06, "5f6a7")
HASHES = st.text("0123456789abcdef", min_size=10, max_size=10)


def test_a_word_is_written_and_read() -> None:
    assert WHOLE.text() == "10.r0a1b2c3d4e.i5f6a7.x9f8e7d6c5b.t1000000.p60000"
    assert read_word(WHOLE.text()) == WHOLE
    assert read_word("0.x9f8e7d6c5b") == CanaryWord(0, left=("9f8e7d6c5b",))


@pytest.mark.parametrize(
    "text", ["", "10", "101.r0a", "-1.r0a", "x.r0a", "1e1.r0a", "²." + "r0a", "10.", "10.t5", "10.r", "None"]
)
def test_what_is_not_readable_says_nothing(text: str) -> None:
    assert read_word(text) is None


def test_what_a_later_release_adds_is_ignored() -> None:
    assert read_word("5.r0a.z9.tx.p²") == CanaryWord(5, "0a")


@given(
    st.integers(0, 100),
    HASHES,
    st.lists(HASHES, max_size=6, unique=True),
    st.none() | st.floats(1e-6, 3600.0),
    st.none() | st.floats(1e-6, 60.0),
)
def test_every_word_is_the_value_of_a_label(
    percent: int, revision: str, left: list[str], ttft_s: float | None, tpot_s: float | None
) -> None:
    word = CanaryWord(percent, revision, tuple(left), ttft_s, tpot_s, "5f6a7")
    text = word.text()
    assert len(text) <= 63
    assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?", text)
    found = read_word(text)
    assert found is not None
    assert (found.percent, found.revision, found.trial) == (percent, revision, "5f6a7")
    assert found.left == word.fitted().left == tuple(left)[: len(found.left)]
    assert len(found.left) >= min(1, len(left))
    assert found.ttft_s == (None if ttft_s is None else pytest.approx(ttft_s, abs=1e-6))


def test_two_revisions_that_get_nothing_find_room_beside_objectives_of_seconds() -> None:
    word = CanaryWord(50, "a" * 10, ("b" * 10, "c" * 10, "d" * 10), 30.0, 0.999, "5f6a7")
    assert word.fitted().left == ("b" * 10, "c" * 10)
    assert read_word(word.text()) == word.fitted()


def test_the_revisions_of_both_pools_have_one_name() -> None:
    words = {"prefill": CanaryWord(1, "b"), "decode": CanaryWord(1, "a"), "both": CanaryWord(0, left=("c",))}
    assert name_of(words) == "a-b"
    tried = {pool: CanaryWord(1, pool, trial="1") for pool in ("prefill", "decode")}
    assert name_of(tried) == "decode-prefill-1"
    assert name_of({"decode": CanaryWord(0, left=("c",), trial="1")}) == ""
    assert name_of({}) == ""
