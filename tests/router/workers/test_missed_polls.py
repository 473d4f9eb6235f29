"""Tests of the polls that workers have missed in a row."""

from __future__ import annotations

from disagg_router.workers.missed_polls import MissedPolls


def test_polls_count_until_one_is_answered() -> None:
    polls = MissedPolls()
    assert polls.missed("a", 1.0) == (1, 1.0)
    assert polls.missed("b", 2.0) == (1, 2.0)
    assert polls.missed("a", 3.0) == (2, 1.0)
    assert polls.missed("a", 3.5) == (3, 3.0)
    polls.answered("a", 3.9)
    polls.answered("nobody", 3.9)
    assert polls.missed("a", 4.0) == (1, 4.0)
    polls.keep_only({"a"})
    assert polls.missed("b", 5.0) == (1, 5.0)
    assert polls.missed("a", 6.0) == (2, 4.0)


def test_who_has_answered_once_is_silent_since_then() -> None:
    polls = MissedPolls()
    assert polls.silent_s("a", 9.0) == 0.0
    polls.answered("a", 2.0)
    assert polls.silent_s("a", 9.0) == 7.0
    polls.keep_only(())
    assert polls.silent_s("a", 9.0) == 0.0
