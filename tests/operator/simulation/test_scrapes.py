"""The table of a run's ticks has a row for each tick, and every column by its name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from tests.operator.simulation.loads import SETUP, stay, trace

from disagg_operator.simulation.cluster import Cluster
from disagg_operator.simulation.scrapes import TickRow


def test_every_tick_is_a_row_and_every_name_a_column() -> None:
    load = trace(np.arange(0.5, 60.0), 100, 3)
    series = Cluster(load, replace(SETUP, initial=(2, 3))).run(stay).series
    columns = series.columns_as_lists()
    assert tuple(columns) == TickRow._fields
    assert all(series[name].tolist() == values for name, values in columns.items())
    assert columns["t_s"] == [15.0, 30.0, 45.0, 60.0]
    assert columns["prefill_desired"] == columns["prefill_ready"] == columns["prefill_paid"] == [2] * 4
    assert columns["decode_desired"] == columns["decode_ready"] == columns["decode_paid"] == [3] * 4
    assert columns["arrivals"] == [15] * 4
    assert sum(columns["prompt_tokens"]) == 100 * len(load)
    assert columns["ttft_total"] == columns["ttft_ok"]
