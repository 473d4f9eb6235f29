"""The score counts what was paid for, and leaves out the beginning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.operator.simulation.loads import PROFILE

from disagg_operator.simulation import named_policies
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.score import score
from disagg_operator.simulation.traces import Trace

SETUP = Setup(PROFILE, most=20)


def test_a_fixed_fleet_costs_its_workers_and_the_first_ten_minutes_are_not_scored() -> None:
    r = np.random.default_rng(1)
    at = np.sort(r.uniform(0, 1800, 6000))
    trace = Trace("t", at, np.where(at < 500, 30_000, 200), np.zeros(len(at), int), np.full(len(at), 5))
    fixed = named_policies.make("static:3,2", SETUP)
    result = score(Cluster(trace, replace(SETUP, initial=(3, 2), drop_s=5.0)).run(fixed))
    assert result.gpu_hours == pytest.approx(5 * 4 * 0.5, rel=0.01)
    assert result.dropped > 100
    assert result.attainment == 1.0
    assert result.requests == len(trace)
