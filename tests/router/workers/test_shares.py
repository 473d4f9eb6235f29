"""Tests of how requests are shared out between groups of workers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.workers.shares import drawn, pair_shares


@pytest.mark.parametrize(
    ("groups", "shares"),
    [
        ([], []),
        ([(1, 1)], [1.0]),
        ([(4, 4), (1, 1)], [0.8, 0.2]),
        ([(4, 1), (1, 1)], [0.5, 0.2]),
        ([(0, 1), (0, 3)], [0.25, 0.75]),
        ([(0, 0), (0, 0)], [0.5, 0.5]),
    ],
)
def test_a_share_follows_the_role_of_which_a_group_has_less(groups: list[tuple[int, int]], shares: list[float]) -> None:
    assert pair_shares(groups) == pytest.approx(shares)


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1), st.floats(0, 1, exclude_max=True))
def test_a_draw_is_always_one_of_the_groups(groups: list[tuple[int, int]], roll: float) -> None:
    shares = pair_shares(groups)
    assert all(0 < share <= 1 for share in shares)
    assert sum(shares) <= 1 + 1e-9
    assert 0 <= drawn(shares, roll) < len(groups)
    assert drawn(shares, 0.0) == 0
    assert drawn(shares, 1.0) == len(groups) - 1
