"""Tests of the order over all API keys: tables, and what holds for any load."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.admission.asker import Asker
from disagg_router.admission.fair_order import FairOrder
from disagg_router.admission.turn_order import Turn


@dataclass
class Pool:
    """A pool with some places, and requests that hold them until they are ended."""

    places: int
    order: FairOrder = field(default_factory=lambda: FairOrder(0.0))
    running: list[Turn] = field(default_factory=list)
    served: list[Turn] = field(default_factory=list)
    number: int = 0

    def come(self, share: str, priority: int = 0) -> Turn:
        """Let a request come, which runs if nobody is before it and there is a place."""
        turn = Turn(self.number, float(self.number), asker=Asker(priority, share))
        self.number += 1
        self.order.came(turn)
        first = self.order.first(0.0)
        if len(self.running) < self.places and (first is None or self.order.before(turn, first, 0.0)):
            self.running.append(turn)
        else:
            self.order.join(turn)
        return turn

    def end(self, turn: Turn, tokens: int = 1) -> None:
        """End a request that runs, and give its place to the first one."""
        self.running.remove(turn)
        self.order.went(turn, tokens)
        self.fill()

    def fill(self) -> None:
        while len(self.running) < self.places and (first := self.order.first(0.0)) is not None:
            self.order.leave(first)
            self.order.placed(first, 0.0)
            self.running.append(first)
            self.served.append(first)

    def run_dry(self, tokens: dict[str, int]) -> list[str]:
        """End what runs, the oldest first, until nobody waits; return who was served, in order."""
        queue = deque(self.running)
        while len(self.order):
            before = len(self.served)
            turn = queue.popleft()
            self.end(turn, tokens.get(turn.asker.share, 1))
            queue.extend(self.served[before:])
        return [t.asker.share for t in self.served]


def test_one_key_alone_is_served_in_the_order_of_arrival() -> None:
    pool = Pool(1)
    turns = [pool.come("a") for _ in range(5)]
    pool.run_dry({})
    assert [t.number for t in pool.served] == [t.number for t in turns[1:]]


def test_a_newcomer_goes_before_all_that_another_key_has_waiting() -> None:
    pool = Pool(1)
    for _ in range(50):
        pool.come("flood")
    pool.come("quiet")
    assert pool.run_dry({})[:3] == ["quiet", "flood", "flood"]


def test_with_one_place_keys_get_equally_many_tokens_not_requests() -> None:
    pool = Pool(1)
    for share in ["long"] * 20 + ["short"] * 200:
        pool.come(share)
    order = pool.run_dry({"long": 100, "short": 10})
    both = order[: order.index("long", 100)]  # while both wait
    tokens = {"long": 100 * both.count("long"), "short": 10 * both.count("short")}
    assert abs(tokens["long"] - tokens["short"]) <= 200, str(tokens)


def test_places_are_shared_out_equally_among_those_that_wait() -> None:
    pool = Pool(8)
    for _ in range(100):
        pool.come("flood")
    for _ in range(100):
        pool.come("second")
    for _ in range(2):
        pool.come("quiet")
    for _ in range(40):
        pool.end(next(t for t in pool.running if t.asker.share == "flood") if len(pool.served) < 5 else pool.running[0])
    counts = Counter(t.asker.share for t in pool.running)
    assert abs(counts["flood"] - counts["second"]) <= 1, str(counts)
    assert Counter(t.asker.share for t in pool.served[:6])["quiet"] == 2


def test_a_higher_priority_goes_first_however_much_it_has() -> None:
    pool = Pool(2)
    for share, priority in [("low", -1), ("usual", 0), ("high", 1)] * 10:
        pool.come(share, priority)
    order = pool.run_dry({})
    assert order == sorted(order, key=["high", "usual", "low"].index)


def test_a_key_that_was_away_gets_no_credit_for_that_time() -> None:
    pool = Pool(1)
    for _ in range(100):
        pool.come("a")
        pool.come("b")
    for _ in range(60):
        pool.end(pool.running[0], 10)
    for _ in range(20):
        pool.come("late")
    start = len(pool.served)
    for _ in range(30):
        pool.end(pool.running[0], 10)
    counts = Counter(t.asker.share for t in pool.served[start:])
    assert max(counts.values()) - min(counts.values()) <= 1
    assert set(counts) == {"a", "b", "late"}


EVENTS = st.lists(
    st.tuples(st.sampled_from(("come", "end", "give up")), st.sampled_from("abc"), st.integers(0, 50)), max_size=80
)


@given(EVENTS, st.integers(1, 4))
def test_places_differ_by_one_among_keys_that_wait_and_nobody_is_lost(
    events: list[tuple[str, str, int]], places: int
) -> None:
    pool, waiting = Pool(places), dict[int, Turn]()
    for kind, share, pick in events:
        if kind == "come":
            turn = pool.come(share)
            if turn not in pool.running:
                waiting[turn.number] = turn
        elif kind == "end" and pool.running:
            pool.end(pool.running[pick % len(pool.running)], pick)
        elif kind == "give up" and waiting:
            turn = waiting.pop(sorted(waiting)[pick % len(waiting)])
            pool.order.leave(turn)
            pool.order.went(turn, 0)
        for turn in pool.running:
            waiting.pop(turn.number, None)
        assert len(pool.order) == len(waiting)
        assert not waiting or len(pool.running) == places
        first = pool.order.first(0.0)
        assert (first is None) == (not waiting)
        if first is not None:
            running = Counter(t.asker.share for t in pool.running)
            least = min(running[t.asker.share] for t in waiting.values())
            assert running[first.asker.share] == least
            assert first.number == min(n for n, t in waiting.items() if t.asker == first.asker)
            assert not any(pool.order.before(t, first, 0.0) for t in waiting.values() if t != first)
    while pool.running:
        pool.end(pool.running[0])
    assert not len(pool.order)
    assert not pool.order._lines


@pytest.mark.parametrize("tries", [False, True])
def test_a_request_that_tries_is_not_in_its_own_way(tries: bool) -> None:
    order = FairOrder(0.0)
    one, other = Turn(0, 0.0, asker=Asker(0, "a")), Turn(1, 1.0, asker=Asker(0, "b"))
    for turn in (one, other):
        order.came(turn)
    order.join(other)
    if not tries:
        order.join(one)
    assert order.before(one, other, 2.0)
    assert not order.before(other, one, 2.0)
