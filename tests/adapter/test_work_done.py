"""Tests of what the adapter counts of its engine's work."""

from __future__ import annotations

import math

import pytest

from disagg_adapter.engines.contract import Readings
from disagg_adapter.work_done import WorkDone

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
    totals = done.totals(READ, prefills=True, decodes=False)
    assert totals["prefill_batches"] == 2
    assert totals["prefill_batch_tokens"] == 110
    assert totals["prefill_batch_tokens_squared"] == 10100
    assert totals["prefill_batch_seconds"] == 5.0
    assert all(math.isnan(value) for name, value in totals.items() if name.startswith("decode"))


def test_tokens_count_with_the_length_of_their_sequence() -> None:
    done = WorkDone()
    done.generated(2, 100)
    done.generated(1, 7)
    totals = done.totals(READ, prefills=False, decodes=True)
    assert totals["decode_step_sequences"] == 3
    assert totals["decode_step_kv_tokens"] == 207
    assert (totals["decode_steps"], totals["decode_step_seconds"]) == (10.0, 20.0)
    assert all(math.isnan(value) for name, value in totals.items() if name.startswith("prefill"))


@pytest.mark.parametrize("readings", [Readings(), Readings(steps_total=3.0, itl_s_sum=0.0, itl_count=0.0)])
def test_what_the_engine_does_not_tell_is_unknown(readings: Readings) -> None:
    assert math.isnan(WorkDone().totals(readings, prefills=False, decodes=True)["decode_step_seconds"])
