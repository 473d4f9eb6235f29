"""Tests of the admission to decode, and of the choice of the victim when blocks run out."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.errors import InvalidInput, NoCapacity
from disagg_worker.engine.decode_scheduler import Capacity, blocks_to_hold, check_length, victim

ROOMY = Capacity(
    block_size_tokens=16,
    blocks_total=100,
    blocks_free=100,
    committed=0,
    max_running=4,
    max_model_len=1024,
    growth_tokens=64,
)


@pytest.mark.parametrize(
    ("tokens", "total", "blocks"),
    [
        (1, 2, 1),
        (16, 16, 2),
        (16, 17, 2),
        (15, 16, 1),
        (100, 120, 8),
        (100, 300, 11),
        (100, 10_000, 11),
        (1023, 1024, 64),
    ],
)
def test_a_part_of_the_growth_is_held_from_the_start(tokens: int, total: int, blocks: int) -> None:
    assert blocks_to_hold(tokens, total, ROOMY) == blocks


@pytest.mark.parametrize(
    ("change", "tokens", "error", "says"),
    [
        ({}, 0, InvalidInput, "at least one"),
        ({}, 1024, InvalidInput, "max_model_len 1024"),
        ({"blocks_total": 5, "blocks_free": 5}, 100, InvalidInput, "100 in all need 7 KV blocks, this worker has 5"),
        (
            {"blocks_total": 7, "blocks_free": 7, "growth_tokens": 1},
            100,
            InvalidInput,
            "150 in all need 10 KV blocks, this worker has 7",
        ),
        ({"committed": 4}, 10, NoCapacity, "max_running is 4"),
        ({"blocks_free": 3}, 100, NoCapacity, "3 of 100 are free"),
        ({"blocks_free": -3}, 100, NoCapacity, "0 of 100 are free"),
    ],
    ids=[
        "no tokens",
        "as long as the model allows",
        "more than the pool",
        "growth beyond the pool",
        "too many",
        "too few",
        "promised",
    ],
)
def test_what_does_not_fit_is_refused_and_says_why(
    change: dict[str, int], tokens: int, error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        blocks_to_hold(tokens, tokens + 50, replace(ROOMY, **change))


def test_one_token_less_than_the_limit_is_accepted() -> None:
    check_length(1023, ROOMY)


@given(st.integers(1, 1023), st.integers(1, 3000), st.integers(1, 64), st.integers(0, 200), st.integers(1, 2000))
def test_an_admitted_request_has_room_for_its_tokens_and_the_next_and_could_end(
    tokens: int, total: int, size: int, free: int, growth: int
) -> None:
    capacity = replace(ROOMY, block_size_tokens=size, blocks_free=free, blocks_total=200, growth_tokens=growth)
    try:
        n = blocks_to_hold(tokens, total, capacity)
    except (NoCapacity, InvalidInput):
        return
    most = min(max(total, tokens + 1), capacity.max_model_len)
    assert n <= free
    assert n * size >= min(most, tokens + growth) >= tokens + 1
    assert most <= capacity.blocks_total * size


@given(st.lists(st.integers(0, 50), unique=True), st.integers(0, 50))
def test_only_newer_sequences_give_way_and_the_newest_first(holders: list[int], needy: int) -> None:
    found = victim(needy, holders)
    assert found == max((h for h in holders if h > needy), default=None)
