"""Tests of the bounded queue of spans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from disagg_router.tracing.span_queue import SpanMessage, SpanQueue

MESSAGES = st.lists(st.builds(SpanMessage, st.binary(max_size=30), st.integers(1, 12)), max_size=40)


@given(MESSAGES, st.integers(1, 40), st.integers(1, 200))
def test_it_never_holds_more_than_it_may_and_loses_nothing_that_it_took(
    messages: list[SpanMessage], most_spans: int, most_bytes: int
) -> None:
    queue = SpanQueue(most_spans, most_bytes)
    taken = [message for message in messages if queue.add(message)]
    assert queue.spans == sum(m.spans for m in taken) <= most_spans
    assert queue.bytes == sum(len(m.content) for m in taken) <= most_bytes
    assert queue.waiting == len(taken)
    sent: list[SpanMessage] = []
    while (batch := queue.take(8, 50)) is not None:
        sent.append(batch)
    assert b"".join(m.content for m in sent) == b"".join(m.content for m in taken)
    assert queue.spans == sum(m.spans for m in taken)  # what is being sent counts
    for message in sent:
        queue.done(message)
    assert (queue.spans, queue.bytes, queue.waiting) == (0, 0, 0)


def test_a_batch_is_bounded_but_has_at_least_one_message() -> None:
    queue = SpanQueue(100, 1000)
    for message in (SpanMessage(b"aa", 9), SpanMessage(b"b", 1), SpanMessage(b"c", 1)):
        assert queue.add(message)
    assert queue.take(8, 50) == SpanMessage(b"aa", 9)
    assert queue.take(8, 50) == SpanMessage(b"bc", 2)
    assert queue.take(8, 50) is None


def test_without_room_no_message_need_be_made() -> None:
    queue = SpanQueue(2, 10)
    assert queue.has_room(2)
    assert not queue.has_room(3)
    assert queue.add(SpanMessage(b"x" * 10, 1))
    assert not queue.has_room(1)
