"""Tests of prompts whose start is in the cache, and whose rest is computed where they are
decoded.
"""

from __future__ import annotations

import pytest
from tests.worker.engine.queue_run import BLOCKS, SIZE, Run

from disagg_protocol.errors import NoCapacity
from disagg_worker.engine.block_pool import State
from disagg_worker.engine.sequence import Sequence


class _Mask:
    """A mask of a grammar that takes its time."""

    ready = quick = False


def _run(tokens: int = 16) -> Run:
    """Return a run whose cache has the first `tokens` tokens of every prompt."""
    run = Run(growth=1)
    run.queues.add_local(run.sequence(tokens + 1, 1, ""))
    while run.queues.waiting or run.queues.running:
        run.turn()
    return run


def _add(run: Run, s: Sequence, most_missing: int = 64) -> None:
    run.queues.add_rest(s, run.queues.start_names(s.tokens, s.tenant), most_missing)


def test_the_start_is_held_from_the_arrival_on_and_the_rest_does_not_wait_for_a_batch() -> None:
    run = _run()
    s = run.sequence(19, 1, "")
    _add(run, s, 3)
    assert (s.computed, s.cached_tokens, len(s.blocks)) == (16, 16, 5)
    assert run.store.free == BLOCKS - 5
    work, _ = run.queues.take_prefill(s.queued_at_s)
    assert work == [(s, 3)]


@pytest.mark.parametrize(
    ("tokens", "tenant", "most_missing", "message"),
    [
        (19, "", 2, "3 of 19 tokens are missing"),
        (19, "other", 64, "19 of 19 tokens are missing"),
        (3, "", 64, "3 of 3 tokens are missing"),
    ],
)
def test_what_is_not_here_or_too_much_is_for_prefill(tokens: int, tenant: str, most_missing: int, message: str) -> None:
    run = _run()
    with pytest.raises(NoCapacity, match=message):
        _add(run, run.sequence(tokens, 1, tenant), most_missing)
    assert (run.queues.waiting, run.store.free, run.queues.committed) == ([], BLOCKS, 0)


def test_who_would_wait_for_others_is_for_prefill_but_a_limit_may_be_above_a_batch() -> None:
    run = _run(8)
    _add(run, run.sequence(20, 1, ""))  # 12 tokens, and 8 go into a batch beside decode.
    with pytest.raises(NoCapacity, match="12 tokens are to be computed before these 4"):
        _add(run, run.sequence(12, 1, ""))


def test_only_what_is_computed_by_choice_counts_as_such() -> None:
    run = _run()
    first, rest = run.sequence(30, 1, "", of=7), run.sequence(19, 8, "")
    _add(run, rest)
    run.queues.add_local(first)
    run.queues.note_prefilled([(first, 30), (rest, 3)])
    assert (run.queues.prompt_tokens, run.queues.rest_tokens) == (33, 3)
    run.queues._preempt(rest)  # What is computed from now on is computed again.
    run.queues.note_prefilled([(rest, 19)])
    assert (run.queues.prompt_tokens, run.queues.rest_tokens) == (52, 3)
    assert (rest.holding, rest.computed) == (None, 0)


def test_it_takes_room_only_for_what_nobody_owns() -> None:
    run = _run()
    long = run.sequence(17, 20, "")
    _add(run, long)
    run.turn()
    assert run.queues.running == [long]
    run.reserved.append((run.store.pool.allocate(run.store.free - 2, State.LEASED), 0, 0))
    _add(run, run.sequence(18, 1, ""))
    assert run.store.free == 1


def test_nobody_waits_for_a_rest_that_waits_for_its_grammar() -> None:
    run = _run()
    s, same = run.sequence(22, 1, ""), run.sequence(22, 1, "")
    s.grammar = _Mask()  # type: ignore[assignment]
    _add(run, s)
    run.queues.add_local(same)
    assert [w for w, _ in run.queues.take_prefill(1.0)[0]] == [same]
    assert s.computed == SIZE * 4
