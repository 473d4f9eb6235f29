"""What a cluster's network policies must let through, by default and as its owner says."""

from __future__ import annotations

from disagg_operator.desired.facts import NetworkAccess

DEFAULT = NetworkAccess()


def test_what_the_owner_does_not_say_is_as_by_default() -> None:
    assert NetworkAccess.given(None, None) == DEFAULT


def test_what_the_owner_says_replaces_the_default_even_if_it_is_nothing() -> None:
    assert NetworkAccess.given([], None) == NetworkAccess((), DEFAULT.web_ports)
    assert NetworkAccess.given(None, [3128]) == NetworkAccess(DEFAULT.scrapers, (3128,))
