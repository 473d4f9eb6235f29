"""Tests of what is taken away to see what lack of foresight costs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmarks.autoscaling import foresight
from tests.operator.autoscaling.policy.cluster import RULES

from disagg_operator.autoscaling.policy import forecast, sizing
from disagg_operator.autoscaling.policy.memory import PoolState
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals
from disagg_operator.performance import profile_file
from disagg_operator.simulation.cluster import Setup


def test_a_plan_that_knows_the_work_sizes_for_that_of_a_cold_start_ahead() -> None:
    setup = Setup(profile_file.load("70b-h100-tp4"))
    work = np.where(np.arange(200) < 100, 2.0, 8.0), np.full(200, 3.0)
    plan = foresight.knowing(work, setup, sizing.plan)
    pods = Pods(4, 4)
    o = Observation(1500.0, 15.0, PrefillSignals(pods), DecodeSignals(pods))
    pool = PoolState(demand=forecast.update(forecast.Forecaster(), 1500.0, 15.0, 2.0, RULES.tuning))
    seen = {
        role: plan(RULES, role, o, pool, sizing.Outlook(75.0, 45.0, 40.0, coming=20.0, shown=20.0))[0].numbers
        for role in ("prefill", "decode")
    }
    assert (seen["prefill"]["forecast"], seen["decode"]["forecast"]) == (8.0, 3.0)
    assert forecast.predict(pool.demand, 120.0, RULES.tuning)[0] == pytest.approx(2.0)


def test_a_row_compares_a_part_with_the_policy_and_a_run_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def simulate(_: Path, name: str, part: str) -> dict[str, Any]:
        made.append(part)
        return {"gpu_hours": 400.0 if part.startswith("load") else 100.0 - len(made), "attainment": 0.99}

    monkeypatch.setattr(foresight, "simulate", simulate)
    for _ in range(2):
        table = list(foresight.rows(("day",), lambda name, part: foresight.cached(tmp_path, tmp_path, name, part)))
    assert table[2] == "| the policy | 99 @99.00 |"
    assert table[3].endswith("| 98 @99.00 (-1 %) |")
    assert table[-1].endswith("| 100 @99.00 (+1 %) |")
    assert len(made) == len(foresight.PARTS)
