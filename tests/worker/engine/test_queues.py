"""Tests of the engine's queues without a network: in any case every request ends, the oldest one
goes on, and no block is lost.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples
from tests.worker.engine.queue_run import BLOCKS, SIZE, Run

from disagg_protocol.errors import NoCapacity
from disagg_wire.room import Room
from disagg_worker.engine.block_pool import State
from disagg_worker.engine.deadlines import PATIENCE_S
from disagg_worker.engine.prefill_pace import UNKNOWN, Pace
from disagg_worker.engine.sequence import Sequence

acts = st.tuples(
    st.sampled_from(["local", "local", "rest", "rest", "prefill", "reserve", "join", "turn", "release"]),
    st.integers(1, 60),
    st.integers(1, 60),
    st.sampled_from(["", "a"]),
    st.sampled_from([None, None, -1.0, 0.25, 1000.0]),
)


@settings(max_examples=examples(150))
@given(st.lists(acts, max_size=40), st.integers(1, 40), st.booleans(), st.sampled_from([UNKNOWN, Pace(0.05, 0.01)]))
def test_every_request_ends_and_every_block_comes_back(
    ops: list[tuple[str, int, int, str, float | None]], growth: int, cached: bool, pace: Pace
) -> None:
    run = Run(growth, cached, pace=pace)
    taken = 0
    for kind, n, new, tenant, due_in_s in ops:
        try:
            if kind == "local":
                run.queues.add_local(run.sequence(n, new, tenant, due_in_s=due_in_s))
                taken += 1
            elif kind == "rest":
                s = run.sequence(n, new, tenant, due_in_s=due_in_s)
                run.queues.add_rest(s, run.queues.start_names(s.tokens, tenant), new)
                assert 0 < n - s.computed <= new
                taken += 1
            elif kind == "prefill":
                s = run.sequence(n, new, tenant, hands_over=True, due_in_s=due_in_s)
                s.sender = object()  # type: ignore[assignment]  # only whether there is one matters here
                run.queues.add_prefill(s)
            elif kind == "reserve":
                run.reserved.append((run.queues.reserve(n, n + new)[0], n, new))
            elif kind == "join" and run.reserved:
                holding, n, new = run.reserved.pop()
                s = run.sequence(n, new + 1, tenant)
                s.tokens.append(1)
                run.queues.join(s, holding)
                taken += 1
            elif kind == "release":
                for s in run.sent:
                    s.release_asked = True
                    run.queues.free_if_releasable(s)
                run.sent.clear()
            else:
                run.turn()
        except NoCapacity:
            pass
        run.check()
    for holding, _, _ in run.reserved:
        run.queues.unreserve(holding)
    run.reserved.clear()
    for _ in range(4000):
        for s in run.sent:
            s.release_asked = True
            run.queues.free_if_releasable(s)
        run.sent.clear()
        if not (run.queues.waiting or run.queues.running):
            break
        assert run.turn() > 0, "nothing is leased, so somebody can go on"
    assert len(run.ended) == taken
    assert run.store.free == BLOCKS
    assert run.queues.committed == 0


def test_the_newest_gives_its_blocks_up_and_the_oldest_never_does() -> None:
    run = Run(growth=1, prefix_cache=False)
    sequences = [run.sequence(16, 40, "") for _ in range(4)]
    for s in sequences:
        run.queues.add_local(s)
    preempted: set[int] = set()
    while run.queues.waiting or run.queues.running:
        before = {s.key for s in run.queues.running}
        run.turn()
        preempted |= before & {s.key for s in run.queues.waiting}
    assert run.queues.preemptions > 0
    assert sequences[0].key not in preempted
    assert [s.key for s in run.ended] == sorted(s.key for s in run.ended)


def test_a_sequence_that_lacks_a_leased_block_waits_for_it_and_loses_nothing() -> None:
    run = Run(growth=1)
    s = run.sequence(8, 20, "")
    run.queues.add_local(s)
    run.turn()
    held = [run.queues.reserve(tokens, tokens + 1)[0] for tokens in (31, 30)]
    run.reserved = [(h, 0, 0) for h in held]
    while run.turn():
        pass
    assert (s.holding is not None, run.queues.preemptions) == (True, 0)
    run.reserved.clear()
    for holding in held:
        run.queues.unreserve(holding)
    while run.queues.running:
        assert run.turn() == 1
    assert run.ended == [s]


def test_a_prompt_that_waits_for_blocks_is_not_overtaken_by_new_ones() -> None:
    run = Run(growth=1)
    run.queues.add_local(run.sequence(40, 20, "x"))
    for _ in range(3):
        run.turn()
    big = run.sequence(30, 4, "y")
    run.queues.add_local(big)
    refused = False
    try:
        run.queues.reserve(4, 40)
    except NoCapacity:
        refused = True
    assert refused


def test_beside_running_sequences_a_prefill_batch_is_no_larger_than_saturates_the_processor() -> None:
    run = Run(growth=1, prefix_cache=False)
    run.queues.add_local(run.sequence(4, 20, ""))
    run.turn()
    assert [s.computed for s in run.queues.running] == [4]
    run.queues.add_local(run.sequence(40, 4, ""))
    sizes = []
    while run.queues.waiting:
        run.clock_s += 0.1
        assert len(run.queues.take_decode()) == 1
        work, _ = run.queues.take_prefill(run.clock_s)
        sizes.append(sum(n for _, n in work))
        for s, n in work:
            s.computed += n
            if s.computed == len(s.tokens):
                run.queues.start_decode(s)
    assert sizes == [4] * 10


def test_who_comes_back_from_preemption_stands_before_those_who_came_later() -> None:
    run = Run(growth=1, prefix_cache=False)
    sequences = [run.sequence(24, 30, "") for _ in range(3)]
    for s in sequences[:2]:
        run.queues.add_local(s)
    while not run.queues.preemptions:
        run.turn()
    run.queues.waiting.append(sequences[2])
    run.queues.committed += 1
    assert [s.key for s in run.queues.waiting] == [2, 3]
    while run.queues.waiting or run.queues.running:
        run.turn()
    assert [s.key for s in run.ended] == [1, 2, 3]


def test_who_has_emitted_tokens_when_it_is_preempted_is_not_late_any_more_and_goes_first() -> None:
    run = Run(growth=1, prefix_cache=False)
    first, second = run.sequence(24, 30, ""), run.sequence(24, 30, "", due_in_s=0.5)
    for s in (first, second):
        run.queues.add_local(s)
    while not run.queues.preemptions:
        run.turn()
    assert second.emitted > 0
    assert second.due_s is not None
    assert second.due_s < run.clock_s
    new = run.sequence(24, 4, "", due_in_s=1000.0)
    run.queues.waiting.append(new)
    run.queues.committed += 1
    while not (work := run.queues.take_prefill(run.clock_s)[0]):
        run.turn()
    assert work[0][0] is second


def test_what_is_cached_counts_as_computed_when_it_is_told_who_can_be_on_time() -> None:
    run = Run(growth=1)
    run.queues.add_local(run.sequence(17, 1, ""))
    while run.queues.waiting:
        run.turn()
    run.pace = Pace(0.0, 0.01)
    fresh, cached = run.sequence(17, 1, "", due_in_s=0.2, of=7), run.sequence(17, 1, "", due_in_s=0.2)
    for s in (fresh, cached):
        run.queues.add_local(s)
    work, _ = run.queues.take_prefill(run.clock_s + 0.1, run.pace)
    assert (work[0], cached.cached_tokens) == ((cached, 1), 16)


def _begun_and_late(run: Run) -> Sequence:
    """Return a sequence that has computed 8 of its 24 tokens and cannot be on time any more."""
    long = run.sequence(24, 1, "", due_in_s=0.15)
    run.queues.add_local(long)
    run.turn()
    assert (long.computed, long in run.queues.waiting) == (8, True)
    run.clock_s += 0.1
    return long


@pytest.mark.parametrize("due_in_s", [1000.0, None])
def test_nobody_waits_for_a_start_that_is_computed_after_its_turn(due_in_s: float | None) -> None:
    run = Run(growth=1)
    long = _begun_and_late(run)
    same, other = run.sequence(24, 1, "", due_in_s=due_in_s), run.sequence(8, 1, "", due_in_s=1001.0, of=7)
    for s in (same, other):
        run.queues.add_local(s)
    run.turn()
    assert (same.cached_tokens, same.computed, other.computed, long.computed) == (8, 16, 8, 8)


def test_a_start_that_is_in_the_next_batch_is_computed_once_whoever_computes_it() -> None:
    run = Run(growth=1)
    long, same = _begun_and_late(run), run.sequence(24, 1, "", due_in_s=1000.0)
    run.queues.add_local(same)
    run.turn()
    assert (long.computed, same.holding) == (16, None)
    for _ in range(2):
        run.turn()
    assert same.cached_tokens == 20  # All but the block of its last token.


def test_where_nothing_is_due_a_start_that_somebody_has_begun_is_waited_for() -> None:
    run = Run(growth=1)
    same, other, long = run.sequence(24, 1, ""), run.sequence(8, 1, "", of=7), run.sequence(24, 1, "")
    for s in (same, other, long):
        run.queues.add_local(s)
    assert run.queues._start(long)
    run.turn()
    assert (same.holding, other.computed, long.computed) == (None, 8, 0)
    run.turn()
    assert (same.holding, long.computed) == (None, 8)


def test_an_overload_leaves_every_second_batch_to_those_who_can_be_on_time() -> None:
    """Let two prompts that can be on time arrive for each batch, which holds two: the late ones get
    none before they have waited for PATIENCE_S.
    """
    run = Run(growth=1, prefix_cache=False)
    late = [run.sequence(8, 1, "", due_in_s=-1.0) for _ in range(6)]
    run.queues.waiting += late
    led_by = []
    for turn in range(14):
        run.clock_s += PATIENCE_S if turn == 3 else 0.1
        run.queues.waiting += [run.sequence(8, 1, "", due_in_s=1000.0) for _ in range(2)]
        work, _ = run.queues.take_prefill(run.clock_s)
        assert len(work) == 2
        led_by.append("late" if work[0][0] in late else "on time")
        for s, _ in work:
            s.ended = True
            run.queues.remove(s, poisoned=False)
    assert led_by == [*["on time"] * 3, *["late", "on time"] * 3, *["on time"] * 5]


def test_the_room_is_what_nobody_was_promised() -> None:
    run = Run(growth=4, prefix_cache=False)
    assert run.queues.room(0.5) == Room(BLOCKS * SIZE, BLOCKS * SIZE, 6, 6, 0.5)
    run.queues.add_local(run.sequence(8, 40, ""))  # 8 tokens and 4 of its growth
    assert run.queues.room(0.0) == Room((BLOCKS - 3) * SIZE, BLOCKS * SIZE, 5, 6, 0.0)
    run.turn()  # it runs now, and may need one more block next
    assert run.queues.room(0.0) == Room((BLOCKS - 3 - 1) * SIZE, BLOCKS * SIZE, 5, 6, 0.0)


def test_no_more_requests_wait_than_are_allowed_to() -> None:
    run = Run(growth=1)
    for _ in range(256):
        run.queues.add_prefill(run.sequence(4, 1, "", hands_over=True))
    with pytest.raises(NoCapacity, match="256 requests wait, max_waiting is 256"):
        run.queues.add_prefill(run.sequence(4, 1, "", hands_over=True))
    with pytest.raises(NoCapacity, match="max_waiting"):
        run.queues.add_local(run.sequence(4, 1, ""))
    assert (len(run.queues.waiting), run.queues.committed) == (256, 0)


def test_the_limit_of_a_batch_is_told_with_what_it_is_while_nobody_decodes() -> None:
    run = Run(growth=1)
    assert (run.queues.prefill_limit_tokens(0.0), run.queues.prefill_most_tokens) == (16, 16)
    run.queues.add_local(run.sequence(4, 20, ""))
    run.turn()
    assert (run.queues.prefill_limit_tokens(0.1), run.queues.prefill_most_tokens) == (8, 16)


def test_a_prompt_that_has_begun_gives_its_blocks_up_to_an_older_one_that_runs() -> None:
    run = Run(growth=1, prefix_cache=False)
    old, new = run.sequence(4, 20, ""), run.sequence(60, 4, "")
    run.queues.add_local(old)
    run.turn()
    run.queues.add_local(new)
    run.turn()
    assert 0 < new.computed < 60
    run.reserved.append((run.store.pool.allocate(run.store.free, State.LEASED), 0, 0))
    while not run.queues.preemptions:
        assert new.computed < 60
        run.turn()
    assert (new.holding, new.computed) == (None, 0)
    assert (run.queues.waiting, run.queues.running) == ([new], [old])


@pytest.mark.parametrize("poisoned", [False, True])
def test_poisoned_blocks_are_not_found_again(poisoned: bool) -> None:
    run = Run(growth=1)
    s = run.sequence(8, 20, "")
    run.queues.add_local(s)
    run.turn()
    name = s.names[0]
    assert run.store.pool.find(name) is not None
    s.ended = s.release_asked = True
    run.queues.remove(s, poisoned=poisoned)
    assert (run.store.pool.find(name) is None) == poisoned
    assert (run.store.free, run.queues.committed) == (BLOCKS, 0)


def test_a_prompt_that_leaves_before_it_began_leaves_nothing_behind() -> None:
    run = Run(growth=1)
    s = run.sequence(8, 20, "", hands_over=True)
    run.queues.add_prefill(s)
    run.queues.remove(s, poisoned=False)
    assert (run.queues.waiting, run.store.free, run.queues.committed) == ([], BLOCKS, 0)


def test_a_reservation_shares_what_was_computed_and_takes_free_blocks_only_for_the_rest() -> None:
    run = Run(growth=1)
    first = run.sequence(20, 21, "")
    run.queues.add_local(first)
    while not run.queues.running:
        run.turn()
    names = run.queues.start_names(first.tokens[:20], "")
    used, free = list(first.blocks[: len(names)]), run.store.free
    holding, held = run.queues.reserve(20, 21, names)
    assert (held, holding.blocks[:held]) == (len(names), used)
    assert free - run.store.free == len(holding.blocks) - held
    run.queues.unreserve(holding)
    assert (run.store.free, run.queues.committed) == (free, 1)
    assert run.queues.start_names([], "") == []


def test_the_salts_of_one_key_have_one_share_of_the_batches() -> None:
    run = Run(0, prefix_cache=False)
    for i in range(4):
        run.queues.add_local(run.sequence(8, 1, f"many:{i}", of=i))
    few = run.sequence(8, 1, "few:0", of=9)
    run.queues.add_local(few)
    for _ in range(10):
        run.turn()
    assert len(run.ended) == 5
    assert run.ended.index(few) <= 1
