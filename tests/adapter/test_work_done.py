"""Tests of what the adapter counts of its engine's work."""

from __future__ import annotations

import math

import pytest

from disagg_adapter.work_done import WorkDone
from disagg_wire.engine_metrics.readings import Readings

READ = Readings(steps_total=10.0, itl_s_sum=6.0, itl_count=3.0)


def test_time_counts_once_while_prompts_overlap() -> None:
    done = WorkDone()
    done.prefill_began("a", 100, 1.0)
    done.prefill_began("b", 10, 2.0)
    assert (done.queued_prompts, done.queued_tokens) == (2, 110)
    done.prefill_ended("a", 3.0, done=True)
    done.prefill_ended("b", 5.0, done=True)
    done.prefill_ended("b", 9.0, done=True)  # only the first time counts
    done.prefill_began("c", 7, 10.0)
    done.prefill_ended("c", 11.0, done=False)
    assert (done.queued_prompts, done.queued_tokens) == (0, 0)
    totals = done.totals(READ, 12.0, prefills=True, decodes=False)
    assert totals["prefill_batches"] == 2
    assert totals["prefill_batch_tokens"] == 110
    assert totals["prefill_batch_tokens_squared"] == 10100
    assert totals["prefill_batch_seconds"] == 5.0
    assert all(math.isnan(value) for name, value in totals.items() if name.startswith("decode"))


def test_tokens_count_with_the_length_of_their_sequence() -> None:
    done = WorkDone()
    done.generated(2, 100)
    done.generated(1, 7)
    totals = done.totals(READ, 12.0, prefills=False, decodes=True)
    assert totals["decode_step_sequences"] == 3
    assert totals["decode_step_kv_tokens"] == 207
    assert (totals["decode_steps"], totals["decode_step_seconds"]) == (10.0, 20.0)
    assert all(math.isnan(value) for name, value in totals.items() if name.startswith("prefill"))


@pytest.mark.parametrize("readings", [Readings(), Readings(steps_total=3.0, itl_s_sum=0.0, itl_count=0.0)])
def test_what_the_engine_does_not_tell_is_unknown(readings: Readings) -> None:
    assert math.isnan(WorkDone().totals(readings, 1.0, prefills=False, decodes=True)["decode_step_seconds"])


def test_prompts_that_follow_each_other_without_a_pause_count_while_they_are_computed() -> None:
    done, busy_s = WorkDone(), []
    for n in range(4):
        done.prefill_began(str(n), 100, float(n))
        if n:
            done.prefill_ended(str(n - 1), n + 0.5, done=True)
        busy_s.append(done.totals(READ, n + 0.75, prefills=True, decodes=False)["prefill_batch_seconds"])
    assert busy_s == [0.75, 1.75, 2.75, 3.75]


def test_the_duration_of_steps_never_falls() -> None:
    done = WorkDone()

    def seconds(steps: float, itl_s: float, itls: float, started: str = "") -> float:
        readings = Readings(started=started, steps_total=steps, itl_s_sum=itl_s, itl_count=itls)
        return done.totals(readings, 0.0, prefills=False, decodes=True)["decode_step_seconds"]

    assert math.isnan(seconds(1, 0.0, 0))  # the first token of a sequence follows no other
    assert seconds(10, 2.0, 20) == 1.0
    assert seconds(10, 2.0, 20) == 1.0  # asked twice
    # The mean since the start fell from 0.1 to 0.06 s, and its product with the steps to 0.72 s.
    assert seconds(12, 2.4, 40) == pytest.approx(1.04)
    assert seconds(13, 2.4, 40) == pytest.approx(1.04)  # a step without a second token
    assert seconds(4, 0.3, 3, "again") == pytest.approx(1.44)
    assert seconds(1, 0.1, 1, "again") == pytest.approx(1.54)
    assert math.isnan(seconds(1, math.nan, 1, "again"))
