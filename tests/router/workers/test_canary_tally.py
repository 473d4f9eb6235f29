"""What a router counts of a revision that is tried."""

from __future__ import annotations

from typing import Any

from disagg_router.workers.canary import Canary
from disagg_router.workers.canary_tally import CanaryTally, Outcome
from disagg_wire.canary import KEPT_MINUTES, CanaryWord

CANARY = Canary(dict.fromkeys(("prefill", "decode"), CanaryWord(10, "new")))
FOLLOW_S = 180.0


class Request:
    """A request whose outcome so far may be set."""

    def __init__(self, tally: CanaryTally, at_s: float, *, new: bool = True, name: str = "new") -> None:
        self.tally, self.new = tally, new
        self.outcome: Outcome | None = None
        self.begun = tally.begin(name, at_s, lambda over: self.outcome)

    def is_seen(self, *, missed: bool, settled: bool = True) -> None:
        self.outcome = Outcome(self.new, missed, settled)

    def end(self, *, missed: bool = False) -> None:
        self.is_seen(missed=missed)
        self.tally.end(self.begun)


def told(tally: CanaryTally, at_s: float, canary: Canary = CANARY) -> tuple[int, list[list[int]]]:
    """Return the minute up to which nothing is waited for, and the rows."""
    found = tally.to_json(canary, at_s)
    assert found is not None
    assert (found["revision"], found["percent"]) == (canary.name, 10)
    return found["through"], found["minutes"]


def test_requests_count_in_the_minute_in_which_they_began() -> None:
    tally = CanaryTally(FOLLOW_S)
    assert tally.to_json(None, 0.0) is None
    assert tally.to_json(Canary({"decode": CanaryWord(0, left=("x",))}), 0.0) is None
    running = [Request(tally, 120.0), Request(tally, 130.0), Request(tally, 179.0, new=False)]
    later = Request(tally, 185.0, new=False)
    later.end(missed=True)
    for request, missed in zip(running, (False, True, False), strict=True):
        request.end(missed=missed)
    assert told(tally, 250.0) == (3, [[2, 2, 1, 1, 1], [3, 0, 0, 1, 0]])


def test_what_tells_nothing_counts_for_nothing() -> None:
    tally = CanaryTally(FOLLOW_S)
    request = Request(tally, 120.0)
    tally.end(request.begun)
    tally.end(request.begun)
    assert told(tally, 180.0) == (2, [])


def test_a_minute_waits_for_its_requests_and_later_ones_wait_for_it() -> None:
    tally = CanaryTally(FOLLOW_S)
    hangs, quick = Request(tally, 120.0), Request(tally, 200.0)
    quick.end()
    assert told(tally, 250.0) == (1, [[3, 1, 1, 0, 0]])
    # It may still become a kept one.
    hangs.is_seen(missed=False, settled=False)
    assert told(tally, 250.0) == (1, [[2, 1, 1, 0, 0], [3, 1, 1, 0, 0]])
    # What is missed for good need not end.
    hangs.is_seen(missed=True)
    assert told(tally, 250.0) == (3, [[2, 1, 0, 0, 0], [3, 1, 1, 0, 0]])
    hangs.end(missed=True)
    assert told(tally, 250.0) == (3, [[2, 1, 0, 0, 0], [3, 1, 1, 0, 0]])


def test_a_long_answer_is_followed_for_a_while_and_corrected_when_it_ends() -> None:
    tally = CanaryTally(FOLLOW_S)
    long = Request(tally, 120.0)
    long.is_seen(missed=False, settled=False)
    assert told(tally, 120.0 + FOLLOW_S - 1)[0] == 1
    assert told(tally, 120.0 + FOLLOW_S) == (4, [[2, 1, 1, 0, 0]])
    long.end(missed=True)
    assert told(tally, 400.0) == (5, [[2, 1, 0, 0, 0]])


def test_two_hours_are_kept() -> None:
    tally = CanaryTally(FOLLOW_S)
    for minute in range(10, 15 + KEPT_MINUTES):
        Request(tally, 60.0 * minute).end()
    assert [row[0] for row in told(tally, 1e6)[1]] == list(range(15, 15 + KEPT_MINUTES))


def test_each_trial_begins_anew_and_what_began_before_counts_for_neither() -> None:
    tally = CanaryTally(FOLLOW_S)
    Request(tally, 120.0).end()
    before = Request(tally, 130.0)
    other = Canary({"decode": CanaryWord(10, "new", trial="2")})
    assert told(tally, 190.0, other) == (2, [])
    first: Any = Request(tally, 195.0, name=other.name)
    assert told(tally, 250.0, other) == (2, [])
    before.end(missed=True)
    first.end()
    assert told(tally, 250.0, other) == (3, [[3, 1, 1, 0, 0]])
    assert told(tally, 250.0) == (3, [])
