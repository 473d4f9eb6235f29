"""The work queue: one run per key at a time, no key lost, and growing delays after failures."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.profiles import examples

from disagg_operator.controller.work_queue import KeyedQueue, Lane, QueueFull, QueueState

A, B = ("ns", "a"), ("ns", "b")


def test_a_key_is_queued_once_and_run_once() -> None:
    q = QueueState()
    q.add(A, 0.0)
    q.add(A, 0.0)
    assert (q.pop(0.0), q.pop(0.0)) == (A, None)


def test_a_key_that_changes_while_it_runs_runs_once_more() -> None:
    q = QueueState()
    q.add(A, 0.0)
    q.pop(0.0)
    q.add(A, 0.0)
    assert q.pop(0.0) is None
    q.done(A, 0.0)
    assert q.pop(0.0) == A


def test_failures_back_off_to_five_minutes_and_a_success_forgets_them() -> None:
    q, now, pauses = QueueState(), 0.0, []
    q.add(A, now)
    for _ in range(11):
        assert q.pop(now) == A
        q.done(A, now, failed=True)
        due = q.next_due()
        assert due is not None
        pauses.append(due - now)
        now = due
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]
    q.pop(now)
    q.done(A, now)
    assert q.failures(A) == 0
    assert q.next_due() is None


def test_what_fails_for_want_of_an_api_server_is_tried_every_twenty_seconds() -> None:
    q, now, pauses = QueueState(), 0.0, []
    q.add(A, now)
    for _ in range(8):
        assert q.pop(now) == A
        q.done(A, now, failed=True, away=True)
        due = q.next_due()
        assert due is not None
        pauses.append(due - now)
        now = due
    assert pauses == [1, 2, 4, 8, 16, 20, 20, 20]


@pytest.mark.parametrize(
    ("after_s", "chance", "pause_s"),
    [
        pytest.param(None, 1.0, 1.25, id="the backoff and a quarter"),
        pytest.param(8.0, 0.0, 8.0, id="never less than the server asks for"),
        pytest.param(8.0, 1.0, 10.0, id="but more, so that not all keys come back at once"),
        pytest.param(1e9, 0.0, 300.0, id="no server can stop a key for good"),
    ],
)
def test_pauses_after_a_failure(after_s: float | None, chance: float, pause_s: float) -> None:
    q = QueueState()
    q.add(A, 0.0)
    q.pop(0.0)
    q.done(A, 0.0, failed=True, away=True, after_s=after_s, chance=chance)
    assert q.next_due() == pause_s


def test_events_do_not_shorten_a_backoff_but_an_edited_spec_does() -> None:
    q = QueueState()
    q.add(A, 0.0)
    q.pop(0.0)
    q.done(A, 0.0, failed=True)
    q.add(A, 0.0)
    assert q.pop(0.5) is None
    q.add(A, 0.5, urgent=True)
    assert q.pop(0.5) == A


def test_a_servers_retry_after_is_kept() -> None:
    q = QueueState()
    q.add(A, 0.0)
    q.pop(0.0)
    q.done(A, 0.0, failed=True, after_s=30.0)
    assert q.next_due() == 30.0


def test_a_delay_folds_a_burst_into_one_run() -> None:
    q = QueueState()
    for at in (0.0, 0.1, 0.15):
        q.add(A, at, delay_s=0.2)
    assert q.pop(0.19) is None
    assert (q.pop(0.2), q.pop(5.0)) == (A, None)


def test_the_queue_is_bounded() -> None:
    q = QueueState(max_keys=1)
    q.add(A, 0.0)
    with pytest.raises(QueueFull):
        q.add(B, 0.0)


async def test_get_waits_for_a_key_and_ends_on_close() -> None:
    q = KeyedQueue(asyncio.get_running_loop().time)
    getting = asyncio.create_task(q.get())
    await asyncio.sleep(0)
    q.add(A)
    assert await getting == A
    waiting = [asyncio.create_task(q.get()) for _ in range(3)]
    await asyncio.sleep(0)
    q.close()
    assert await asyncio.gather(*waiting) == [None, None, None]


async def test_two_keys_added_at_once_wake_two_workers() -> None:
    q = KeyedQueue(asyncio.get_running_loop().time)
    waiting = [asyncio.create_task(q.get()) for _ in range(2)]
    await asyncio.sleep(0)
    q.add(A)
    q.add(B)
    async with asyncio.timeout(30):
        assert set(await asyncio.gather(*waiting)) == {A, B}


def taken(q: QueueState) -> str:
    """Run all keys that are due, one after another, and return their names."""
    names = ""
    while (key := q.pop(0.0)) is not None:
        names += key[1]
        q.done(key, 0.0)
    return names


@pytest.mark.parametrize(
    ("added", "order"),
    [
        pytest.param([("a", Lane.RESYNC), ("b", Lane.RESYNC), ("c", Lane.EDIT)], "cab", id="an edit before a resync"),
        pytest.param([("a", Lane.EVENT), ("b", Lane.NEW), ("c", Lane.EDIT)], "cba", id="the more urgent first"),
        pytest.param([("a", Lane.EDIT), ("b", Lane.EDIT)], "ab", id="first come, first served"),
        pytest.param([("a", Lane.RESYNC), ("b", Lane.EVENT), ("a", Lane.EDIT)], "ab", id="an edit moves a key up"),
        pytest.param([("a", Lane.EDIT), ("b", Lane.EVENT), ("a", Lane.RESYNC)], "ab", id="a resync moves none down"),
        pytest.param(
            [("z", Lane.RESYNC), ("y", Lane.RESYNC), *((name, Lane.EDIT) for name in "abcdefghij")], "abcdzefghyij",
            id="a resync has its turns among many edits",
        ),
        pytest.param(
            [("z", Lane.RESYNC), ("v", Lane.EVENT), *((name, Lane.EDIT) for name in "abcdef")], "abcdzvef",
            id="so have all lanes",
        ),
    ],
)  # fmt: skip
def test_keys_come_in_the_order_of_their_lanes(added: list[tuple[str, Lane]], order: str) -> None:
    q = QueueState()
    for name, lane in added:
        q.add(("ns", name), 0.0, lane=lane)
    assert taken(q) == order


def test_a_key_that_changes_while_it_runs_keeps_its_most_urgent_reason() -> None:
    q = QueueState()
    q.add(A, 0.0, lane=Lane.RESYNC)
    assert q.pop(0.0) == A
    q.add(B, 0.0, lane=Lane.NEW)
    q.add(A, 0.0, lane=Lane.EDIT)
    q.add(A, 0.0, lane=Lane.RESYNC)
    q.done(A, 0.0)
    assert taken(q) == "ab"


def test_no_run_of_a_full_list_begins_during_an_edit_but_that_has_an_end() -> None:
    q = QueueState()
    for name in "yz":
        q.add(("ns", name), 0.0, lane=Lane.RESYNC)
    q.add(A, 0.0, lane=Lane.EDIT)
    assert q.pop(0.0) == A
    assert q.pop(0.0) is None
    for name in "cde":
        q.add(("ns", name), 0.0, lane=Lane.EVENT)
        assert q.pop(0.0) == ("ns", name)
    assert (q.pop(0.0), q.pop(0.0)) == (("ns", "y"), None)
    q.done(A, 0.0)
    assert q.pop(0.0) == ("ns", "z")


def test_an_edit_that_hangs_holds_a_full_list_up_for_a_few_seconds_only() -> None:
    q = QueueState()
    q.add(A, 0.0, lane=Lane.EDIT)
    q.add(B, 0.0, lane=Lane.RESYNC)
    assert (q.pop(1.0), q.pop(1.0), q.next_due()) == (A, None, 6.0)
    assert (q.pop(5.9), q.pop(6.0), q.next_due()) == (None, B, None)


def test_a_full_list_leaves_workers_for_edits() -> None:
    q = QueueState(max_resync=2)
    for name in "vwxyz":
        q.add(("ns", name), 0.0, lane=Lane.RESYNC)
    assert [q.pop(0.0) for _ in range(3)] == [("ns", "v"), ("ns", "w"), None]
    assert q.next_due() is None
    q.add(A, 0.0, lane=Lane.EDIT)
    assert q.pop(0.0) == A
    for key in (A, ("ns", "v")):
        q.done(key, 0.0)
    assert [q.pop(0.0), q.pop(0.0)] == [("ns", "x"), None]


@pytest.mark.parametrize("first", ["the time", "the list"])
def test_a_full_list_delays_no_key_whose_time_comes(first: str) -> None:
    """A step of a rollout that is due in 0.1 s does not wait for a thousand other resources."""
    q = QueueState()
    for name in "yz":
        q.add(("ns", name), 0.0, lane=Lane.RESYNC)
    if first == "the time":
        q.add(A, 0.0, 0.1)
    q.add(A, 0.0, lane=Lane.RESYNC)
    if first == "the list":
        q.add(A, 0.0, 0.1)
    assert q.pop(0.2) == A
    assert (taken(q), q.next_due()) == ("yz", None)


@given(st.lists(st.one_of(st.none(), st.sampled_from(Lane)), max_size=150))
def test_no_lane_waits_for_ever(steps: list[Lane | None]) -> None:
    """None is a pop; a lane is a new key in it."""
    q, passed = QueueState(), dict.fromkeys(Lane, 0)
    lanes: dict[tuple[str, str], Lane] = {}
    for number, lane in enumerate(steps):
        if lane is not None:
            lanes["ns", str(number)] = lane
            q.add(("ns", str(number)), 0.0, lane=lane)
            continue
        waiting = set(lanes.values())
        key = q.pop(0.0)
        assert (key is None) == (not waiting)
        if key is not None:
            q.done(key, 0.0)
            chosen = lanes.pop(key)
            passed = {one: passed[one] + 1 if one in waiting and one is not chosen else 0 for one in Lane}
            assert max(passed.values()) <= q.max_passed + len(Lane) - 1


class QueueMachine(RuleBasedStateMachine):
    """A key that is added is run afterwards, and never twice at once, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.now = QueueState(), 0.0
        self.running: set[tuple[str, str]] = set()
        self.owed: set[tuple[str, str]] = set()

    @rule(
        name=st.sampled_from("abc"),
        delay_s=st.sampled_from([0.0, 0.0, 0.5]),
        urgent=st.booleans(),
        lane=st.sampled_from(Lane),
    )
    def add(self, name: str, delay_s: float, urgent: bool, lane: Lane) -> None:
        self.q.add(("ns", name), self.now, delay_s, urgent=urgent, lane=lane)
        self.owed.add(("ns", name))

    @rule()
    def pop(self) -> None:
        key = self.q.pop(self.now)
        if key is not None:
            assert key not in self.running
            self.running.add(key)
            self.owed.discard(key)

    @precondition(lambda self: self.running)
    @rule(failed=st.booleans())
    def done(self, failed: bool) -> None:
        key = sorted(self.running)[0]
        self.running.discard(key)
        self.q.done(key, self.now, failed=failed)
        if failed:
            self.owed.add(key)

    @rule(step_s=st.sampled_from([0.1, 1.0, 10.0]))
    def wait(self, step_s: float) -> None:
        self.now += step_s

    @invariant()
    def every_owed_key_will_run(self) -> None:
        for key in self.owed - self.running:
            assert self.q.depth() or self.q.next_due() is not None, key

    def teardown(self) -> None:
        for _ in range(50):
            self.now += 301.0
            while (key := self.q.pop(self.now)) is not None:
                self.owed.discard(key)
                self.running.add(key)
            for key in list(self.running):
                self.running.discard(key)
                self.q.done(key, self.now)
        assert not self.owed


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=examples(60), stateful_step_count=30)
