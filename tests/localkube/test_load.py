"""The demo's load knows how many requests have waited for their first token at once."""

from __future__ import annotations

import pytest

import demo
import load


def test_a_request_waits_until_its_first_text_or_its_end() -> None:
    result = load.Result()
    with result.until_text() as first, result.until_text() as second:
        assert (result.waiting, result.most_waiting) == (2, 2)
        first()
        first()
        assert result.waiting == 1
        with result.until_text():
            assert (result.waiting, result.most_waiting) == (2, 2)
        assert result.waiting == 1
        second()
    assert (result.waiting, result.most_waiting) == (0, 2)


@pytest.mark.parametrize(
    ("idle", "most_waiting", "expected"),
    [("prefill", 11, False), ("prefill", 12, True), ("decode", 12, False), ("prefill", 0, False)],
)
def test_only_prefill_with_a_queue_over_its_target_may_grow_beside_decode(
    idle: str, most_waiting: int, expected: bool
) -> None:
    autoscaling = {"metrics": [{"type": "QueueDepth", "target": {"averageValue": "10"}}]}
    resource = {"spec": {role: {"autoscaling": autoscaling} for role in ("prefill", "decode")}}
    assert demo.has_cause(resource, idle, load.Result(most_waiting=most_waiting)) is expected
