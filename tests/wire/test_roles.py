"""Tests that a deployment has two pools, and that each is the other of the other."""

from __future__ import annotations

import pytest

from disagg_wire.roles import BOTH, DECODE, PREFILL, ROLES, other_role


def test_a_request_passes_prefill_and_then_decode() -> None:
    assert ROLES == (PREFILL, DECODE)
    assert BOTH not in ROLES


@pytest.mark.parametrize(("role", "other"), [(PREFILL, DECODE), (DECODE, PREFILL)])
def test_the_other_pool_is_the_one_that_a_role_is_not(role: str, other: str) -> None:
    assert other_role(role) == other
    assert other_role(other_role(role)) == role
