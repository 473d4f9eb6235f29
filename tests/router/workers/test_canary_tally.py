"""What a router counts of a revision that is tried."""

from __future__ import annotations

from disagg_router.workers.canary import Canary
from disagg_router.workers.canary_tally import CanaryTally
from disagg_wire.canary import KEPT_MINUTES, CanaryWord

CANARY = Canary(dict.fromkeys(("prefill", "decode"), CanaryWord(10, "new")))


def test_the_tally_of_each_minute_is_kept_for_two_hours_and_begins_anew_with_each_revision() -> None:
    tally = CanaryTally()
    assert tally.to_json(None) is None
    assert tally.to_json(Canary({"decode": CanaryWord(0, left=("x",))})) is None
    for new, met in ((True, True), (True, False), (False, True)):
        tally.count(CANARY, 120.0, new=new, met=met)
    tally.count(CANARY, 185.0, new=False, met=False)
    assert tally.to_json(CANARY) == {"revision": "new", "percent": 10, "minutes": [[2, 2, 1, 1, 1], [3, 0, 0, 1, 0]]}
    for minute in range(10, 10 + KEPT_MINUTES):
        tally.count(CANARY, 60.0 * minute, new=True, met=True)
    told = tally.to_json(CANARY)
    assert told is not None
    assert [row[0] for row in told["minutes"]] == list(range(10, 10 + KEPT_MINUTES))
    other = Canary({"decode": CanaryWord(10, "newer")})
    assert tally.to_json(other) == {"revision": "newer", "percent": 10, "minutes": []}
    tally.count(other, 60.0, new=True, met=True)
    assert tally.to_json(CANARY) == {"revision": "new", "percent": 10, "minutes": []}
