"""Tests of what SGLang's series say of a pod."""

from __future__ import annotations

import math

from disagg_wire.engine_metrics.sample_table import Samples
from disagg_wire.engine_metrics.sglang import pool_readings_of, readings_of, started_of


def table(**values: float) -> Samples:
    return Samples({f"sglang:{name}": [({}, value)] for name, value in values.items()})


def test_all_queues_of_a_pool_count_as_waiting() -> None:
    assert readings_of(table(num_queue_reqs=2, num_prefill_bootstrap_queue_reqs=3)).waiting == 5
    assert math.isnan(readings_of(table(num_prefill_bootstrap_queue_reqs=3)).waiting)


def test_tokens_are_counted_while_requests_run_where_that_is_told() -> None:
    assert readings_of(table(prompt_tokens_total=9, generation_tokens_total=8)).prompt_tokens_total == 9
    now = Samples(
        {"sglang:realtime_tokens_total": [({"mode": "prefill_compute"}, 5.0), ({"mode": "decode"}, 6.0)]}
        | dict(table(prompt_tokens_total=9, generation_tokens_total=8).by_name)
    )
    assert (readings_of(now).prompt_tokens_total, readings_of(now).generated_tokens_total) == (5, 6)


def test_transfers_that_failed_are_added_up_as_far_as_they_are_told() -> None:
    assert readings_of(table(num_transfer_failed_reqs_total=2)).transfer_failures_total == 2
    assert math.isnan(readings_of(table()).transfer_failures_total)


def test_each_start_has_a_name_of_its_own() -> None:
    assert started_of(table()) == ""
    phases = [Samples({"sglang:startup_time_seconds": [({"phase": "load"}, s)]}) for s in (1.0, 2.0)]
    assert len({started_of(one) for one in phases}) == 2


def test_requests_that_ended_and_the_room_are_told() -> None:
    found = pool_readings_of(table(num_requests_total=4, max_total_num_tokens=1000))
    assert (found.finished_total, found.kv_capacity_tokens) == (4, 1000)
    assert found.prompt_lengths.bounds == ()


def test_a_scheduler_of_another_rank_tells_of_the_same_requests() -> None:
    ranks = [({"tp_rank": rank}, 5.0) for rank in ("0", "1", "2", "3")]
    found = pool_readings_of(Samples({"sglang:num_running_reqs": ranks, "sglang:num_requests_total": ranks}))
    assert (found.engine.running, found.finished_total) == (5, 5)
