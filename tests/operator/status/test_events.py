"""Tests of Events: the limit on them, and the objects that are sent."""

from __future__ import annotations

from disagg_operator.status.events import NORMAL, WARNING, EventLimiter, Note, event_object

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


def test_an_event_says_what_it_is_about() -> None:
    about = {
        "apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment",
        "metadata": {"name": "chat", "namespace": "ns", "uid": "u1", "resourceVersion": "7"},
    }  # fmt: skip
    event = event_object(about, PULL, "2026-01-01T00:00:00Z", "a1b2")
    assert event["metadata"] == {"name": "chat.a1b2", "namespace": "ns"}
    assert event["involvedObject"] == {
        "apiVersion": "disagg.dev/v1alpha1", "kind": "DisaggDeployment", "namespace": "ns", "name": "chat", "uid": "u1",
        "resourceVersion": "7",
    }  # fmt: skip
    assert (event["type"], event["reason"], event["message"]) == (WARNING, "ImagePullFailed", "no such image")
    assert event["firstTimestamp"] == event["lastTimestamp"] == "2026-01-01T00:00:00Z"
    assert event["reportingComponent"] == event["source"]["component"] == "disagg-operator"


def test_a_long_name_and_a_long_message_are_cut_to_what_an_event_may_have() -> None:
    about = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x" * 253, "namespace": "ns"}}
    event = event_object(about, Note(WARNING, "R", "y" * 5000), "2026-01-01T00:00:00Z", "a1b2")
    assert len(event["metadata"]["name"]) <= 253
    assert len(event["message"]) <= 1024
    assert (event["involvedObject"]["uid"], event["involvedObject"]["resourceVersion"]) == ("", "")
