"""Tests of Events: the limit on them, and the objects that are sent."""

from __future__ import annotations

from disagg_operator.status.events import NORMAL, WARNING, EventLimiter, Note

PULL = Note(WARNING, "ImagePullFailed", "no such image")


def test_a_reason_is_said_once_in_ten_minutes_per_object() -> None:
    limiter = EventLimiter()
    assert limiter.allows("a", PULL, 0.0)
    assert not limiter.allows("a", Note(WARNING, "ImagePullFailed", "other words"), 599.0)
    assert limiter.allows("b", PULL, 1.0)
    assert limiter.allows("a", PULL, 600.0)


def test_scaling_is_said_whenever_it_differs() -> None:
    limiter = EventLimiter()
    assert limiter.allows("a", Note(NORMAL, "ScaledUp", "1 -> 2"), 0.0)
    assert limiter.allows("a", Note(NORMAL, "ScaledUp", "2 -> 3"), 1.0)
    assert not limiter.allows("a", Note(NORMAL, "ScaledUp", "2 -> 3"), 2.0)


def test_the_limiter_is_bounded() -> None:
    limiter = EventLimiter(max_entries=2)
    for uid in "abc":
        limiter.allows(uid, PULL, 0.0)
    assert limiter.allows("a", PULL, 1.0)
    assert not limiter.allows("c", PULL, 1.0)
