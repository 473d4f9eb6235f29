"""Batches of one length bucket."""

from __future__ import annotations

import pytest

from disagg_operator.simulation.batching import bucket


@pytest.mark.parametrize(
    ("tokens", "level"),
    [(1, 0), (64, 0), (65, 1), (128, 1), (129, 2), (256, 2), (1 << 20, 14), ((1 << 20) + 1, 15)],
)
def test_a_bucket_is_twice_as_long_as_the_one_before(tokens: int, level: int) -> None:
    assert bucket(tokens) == level
