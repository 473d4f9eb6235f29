"""How often an object is restored that somebody else changes all the time."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from disagg_operator.kube.contests import FORGOTTEN_AFTER_S, LONGEST_PAUSE_S, Contests, rival

POOL = ("Deployment", "chat-decode")


def test_the_first_write_and_the_first_restoration_are_immediate_and_then_the_pauses_double() -> None:
    contests, now_s, pauses = Contests(), 100.0, []
    for _ in range(10):
        pauses.append(contests.wait_s(POOL, "a", now_s))
        now_s += pauses[-1]
        assert contests.wait_s(POOL, "a", now_s) == 0
        contests.wrote(POOL, "a", now_s)
    assert pauses == [0, 0, 1, 2, 4, 8, 16, 32, 60, 60]


def test_another_rendering_is_written_at_once() -> None:
    contests = Contests()
    for now_s in range(5):
        contests.wrote(POOL, "a", float(now_s))
    assert contests.told(POOL)
    assert contests.wait_s(POOL, "b", 5.0) == 0
    contests.wrote(POOL, "b", 5.0)
    assert not contests.told(POOL)


def test_what_was_left_alone_for_a_while_starts_anew() -> None:
    contests = Contests()
    for now_s in range(5):
        contests.wrote(POOL, "a", float(now_s))
    later_s = 4.0 + FORGOTTEN_AFTER_S
    assert contests.wait_s(POOL, "a", later_s) == 0
    contests.wrote(POOL, "a", later_s)
    assert contests.wait_s(POOL, "a", later_s) == 0


@given(st.lists(st.floats(0.01, 30.0), min_size=1, max_size=200))
def test_however_fast_somebody_writes_it_is_restored_once_a_minute_in_the_end(gaps: list[float]) -> None:
    contests, now_s, written = Contests(), 0.0, []
    for gap_s in gaps:
        now_s += gap_s
        if contests.wait_s(POOL, "a", now_s) == 0:
            contests.wrote(POOL, "a", now_s)
            written.append(now_s)
    for earlier, later in itertools.pairwise(written[8:]):
        assert later - earlier >= LONGEST_PAUSE_S - 1e-6


def test_the_rival_is_who_wrote_last() -> None:
    def entry(manager: str, minute: int, subresource: str = "") -> dict[str, str]:
        return {"manager": manager, "time": f"2026-01-01T00:{minute:02}:00Z", "subresource": subresource}

    fields = [entry("kubectl", 1), entry("flux", 3), entry("disagg-operator", 4), entry("controller", 5, "status")]
    assert rival({"metadata": {"managedFields": fields}}) == "flux"
    assert rival({"metadata": {}}) == "another client"
    assert rival(None) == "another client"


def test_what_was_written_once_is_not_contested() -> None:
    contests = Contests()
    assert not contests.has(POOL)
    contests.wrote(POOL, "a", 0.0)
    assert not contests.has(POOL)
    contests.wrote(POOL, "a", 1.0)
    assert contests.has(POOL)
