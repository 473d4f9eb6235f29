"""Tests of what LMDeploy's series say."""

from __future__ import annotations

import math

from disagg_wire.engine_metrics.lmdeploy import readings_of
from disagg_wire.engine_metrics.sample_table import Samples

Table = dict[str, list[tuple[dict[str, str], float]]]


def test_requests_wait_in_the_engine_and_before_it() -> None:
    counts = {"requests_waiting": 2.0, "api_requests_waiting": 3.0, "requests_running": 1.0}
    table: Table = {f"lmdeploy:num_{name}": [({}, n)] for name, n in counts.items()}
    found = readings_of(Samples({**table, "process_start_time_seconds": [({}, 1.234)]}))
    assert (found.waiting, found.started) == (5, "1.23")
    assert found.running == 1
    assert math.isnan(found.kv_usage)
