"""Tests of what workers learn of who asks."""

from __future__ import annotations

from disagg_wire.tenants import scope_of, share_of

A, B = "a" * 64, "b" * 64


def test_a_key_has_one_share_whatever_its_salts_and_a_scope_for_each() -> None:
    one, other = scope_of(A, A), scope_of(A, B)
    assert one != other
    assert share_of(one) == share_of(other) != share_of(scope_of(B, A))
    assert len(one) <= 128


def test_without_a_key_all_share_and_an_older_router_s_scope_is_its_own_share() -> None:
    assert share_of(scope_of("", A)) == share_of(scope_of("", B)) == share_of("") == ""
    assert share_of(A) == A
