"""Tests of what vLLM's series say. A page that a real vLLM served is read in tests/adapter."""

from __future__ import annotations

import math

from disagg_wire.engine_metrics.sample_table import Samples
from disagg_wire.engine_metrics.vllm import pool_readings_of, readings_of


def test_the_room_of_all_engines_of_a_pod_is_added_up() -> None:
    engine = ({"num_gpu_blocks": "10", "block_size": "16"}, 1.0)
    assert pool_readings_of(Samples({"vllm:cache_config_info": [engine, engine]})).kv_capacity_tokens == 320


def test_the_room_of_an_engine_whose_label_is_no_number_is_unknown() -> None:
    cache = {"vllm:cache_config_info": [({"num_gpu_blocks": "None", "block_size": "16"}, 1.0)]}
    assert math.isnan(pool_readings_of(Samples(cache)).kv_capacity_tokens)


def test_requests_end_in_several_ways_and_only_what_was_computed_here_is_work() -> None:
    sources = [({"source": "local_compute"}, 5.0), ({"source": "local_cache_hit"}, 6.0)]
    table = {
        "vllm:request_success_total": [({"finished_reason": "stop"}, 3.0), ({"finished_reason": "length"}, 4.0)],
        "vllm:prompt_tokens_by_source_total": sources,
    }
    assert pool_readings_of(Samples(table)).finished_total == 7
    assert readings_of(Samples(table)).prompt_tokens_total == 5


def test_nothing_is_known_of_an_empty_page() -> None:
    found = pool_readings_of(Samples())
    assert all(map(math.isnan, (found.finished_total, found.engine.waiting, found.kv_capacity_tokens)))
