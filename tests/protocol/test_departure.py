"""A worker leaves with notice, which is over by itself, and ends when nobody needs it any more."""

from __future__ import annotations

from disagg_protocol.departure import LINGER_S, Departure


def test_a_notice_lasts_as_long_as_its_lease_and_can_be_renewed_and_withdrawn() -> None:
    one = Departure()
    assert not one.on_notice(0.0)
    one.give_notice(30.0, 0.0)
    assert [one.on_notice(t) for t in (0.0, 29.9, 30.0)] == [True, True, False]
    one.give_notice(30.0, 20.0)
    assert one.on_notice(49.0)
    one.give_notice(0.0, 40.0)
    assert not one.on_notice(40.0)


def test_what_a_notice_took_is_taken_from_the_time_to_end() -> None:
    one = Departure()
    one.give_notice(30.0, 0.0)
    one.give_notice(30.0, 20.0)
    assert one.end(60.0, 25.0) == 35.0
    late = Departure()
    late.give_notice(1000.0, 0.0)
    assert late.end(60.0, 100.0) == 0.0
    lapsed = Departure()
    lapsed.give_notice(30.0, 0.0)
    lapsed.give_notice(30.0, 100.0)  # the second one begins anew
    assert lapsed.end(60.0, 110.0) == 50.0
    assert Departure().end(60.0, 5.0) == 60.0


def test_without_notice_it_takes_requests_in_the_first_half_of_its_end() -> None:
    one = Departure()
    assert not one.takes(0.0)
    one.end(60.0, 0.0)
    assert [one.takes(t) for t in (0.0, 29.9, 30.0)] == [True, True, False]
    one.close()
    assert not one.takes(1.0)


def test_on_notice_it_takes_nothing_at_its_end_and_waits_for_nobody() -> None:
    one = Departure()
    one.router_asked(0.0, needs=True)
    one.give_notice(30.0, 0.0)
    one.end(60.0, 1.0)
    assert not one.takes(1.0)
    assert one.needed_for_s(1.0) == 0.0


def test_it_stays_a_moment_for_a_router_and_longer_for_one_that_needs_it() -> None:
    one = Departure()
    one.router_asked(0.0, needs=False)
    one.end(60.0, 1.0)
    assert one.needed_for_s(1.0) == LINGER_S - 1.0
    one.router_asked(2.0, needs=False)  # it has others
    assert one.needed_for_s(LINGER_S) == 0.0
    one.router_asked(2.0, needs=True)
    assert one.needed_for_s(2.0) == LINGER_S
    one.router_asked(29.0, needs=True)
    assert one.needed_for_s(29.0) == 2.0  # not beyond the time in which it takes requests
    alone = Departure()
    alone.end(60.0, 0.0)
    assert alone.needed_for_s(0.0) == 0.0


def test_on_notice_it_serves_at_its_end_if_a_router_has_nobody_else() -> None:
    """The deployment that goes to zero is deleted, and a router holds requests."""
    one = Departure()
    one.give_notice(30.0, 0.0)
    one.router_asked(9.0, needs=False)
    one.router_asked(10.0, needs=True)
    assert one.end(60.0, 11.0) == 49.0
    assert [one.takes(t) for t in (11.0, 35.4, 35.6)] == [True, True, False]
    assert one.needed_for_s(11.0) == LINGER_S - 1.0
    assert one.needed_for_s(11.0 + LINGER_S) == 0.0
    late = Departure()
    late.give_notice(30.0, 0.0)
    late.router_asked(5.0, needs=True)
    late.end(60.0, 5.0 + LINGER_S)
    assert not late.takes(5.0 + LINGER_S)  # the router has had others since
