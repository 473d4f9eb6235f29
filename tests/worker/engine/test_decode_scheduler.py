"""Admission to decode: what is admitted can grow to its end."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_worker.engine.api import InvalidInput, NoCapacity
from disagg_worker.engine.decode_scheduler import Capacity, blocks_to_hold, check_length

ROOMY = Capacity(block_size_tokens=16, blocks_total=100, blocks_free=100, committed=0, max_running=4, max_model_len=1024)


@pytest.mark.parametrize(
    ("tokens", "total", "blocks"),
    [(1, 2, 1), (16, 16, 2), (16, 17, 2), (15, 16, 1), (100, 300, 19), (100, 10_000, 64), (1023, 1024, 64)],
)
def test_the_growth_of_the_request_is_held_from_the_start(tokens: int, total: int, blocks: int) -> None:
    assert blocks_to_hold(tokens, total, ROOMY) == blocks


@pytest.mark.parametrize(
    ("change", "tokens", "error", "says"),
    [
        ({}, 0, InvalidInput, "at least one"),
        ({}, 1024, InvalidInput, "max_model_len 1024"),
        ({"blocks_total": 5, "blocks_free": 5}, 100, InvalidInput, "this worker has 5"),
        ({"committed": 4}, 10, NoCapacity, "max_running is 4"),
        ({"blocks_free": 3}, 100, NoCapacity, "3 of 100 are free"),
    ],
    ids=["no tokens", "as long as the model allows", "more than the pool", "too many running", "too few free blocks"],
)
def test_what_does_not_fit_is_refused_and_says_why(change: dict[str, int], tokens: int, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        blocks_to_hold(tokens, tokens + 50, replace(ROOMY, **change))


def test_one_token_less_than_the_limit_is_accepted() -> None:
    check_length(1023, ROOMY)


@given(st.integers(1, 1023), st.integers(1, 3000), st.integers(1, 64), st.integers(0, 200))
def test_an_admitted_sequence_never_outgrows_what_it_holds(tokens: int, total: int, size: int, free: int) -> None:
    capacity = replace(ROOMY, block_size_tokens=size, blocks_free=free, blocks_total=200)
    try:
        n = blocks_to_hold(tokens, total, capacity)
    except (NoCapacity, InvalidInput):
        return
    assert n <= free
    assert n * size >= min(max(total, tokens + 1), capacity.max_model_len)
