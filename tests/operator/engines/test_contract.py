"""The series that must be collected of an engine are those that its readings are made of."""

from __future__ import annotations

import pytest

from disagg_operator.engines import BY_NAME


@pytest.mark.parametrize(
    ("engine", "series", "other"),
    [
        ("vllm", "vllm:num_requests_waiting", "vllm:estimated_flops_per_gpu_total"),
        ("sglang", "sglang:num_queue_reqs", "sglang:cache_hit_rate"),
    ],
)
def test_what_is_read_is_named(engine: str, series: str, other: str) -> None:
    meter = BY_NAME[engine].meter
    assert meter is not None
    assert series in meter.names
    assert other not in meter.names
    assert len(set(meter.names)) == len(meter.names)
