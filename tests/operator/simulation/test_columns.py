"""Columns before the first event, and counters as Python sees them."""

from __future__ import annotations

import math

import numpy as np
from tests.operator.simulation.loads import PROFILE, trace

from disagg_operator.simulation.columns import (
    EMPTY,
    PENDING,
    Columns,
    Counters,
    Rules,
    empty_columns,
    entry_times,
    request_rows,
)
from disagg_operator.simulation.tables import plain_numbers
from disagg_operator.simulation.traces import Trace

RULES = Rules(tpot_s=0.06, drop_s=math.inf, link_tokens_per_s=0.0, aligned=False, by_deadline=False, patience_s=20.0)


def columns(load: Trace) -> Columns:
    rows = request_rows(load, load.arrival_s, np.ones(len(load)))
    return empty_columns(rows, PROFILE, RULES)


def test_before_the_first_event_nothing_has_been_served_and_no_worker_exists() -> None:
    load = Trace("t", np.array([0.0, 1.0]), np.array([100, 50]), np.array([60, 50]), np.array([7, 1]))
    s = columns(load)
    assert s.requests.work_tokens.tolist() == [40, 1]  # at least one token is always computed
    assert s.requests.context_tokens.tolist() == [100, 50]
    assert s.requests.left_tokens.tolist() == s.requests.output_tokens.tolist() == [7, 1]
    assert np.isnan([s.requests.first_s, s.requests.last_s]).all()
    assert (s.requests.status == PENDING).all()
    for workers in (s.prefill, s.decode):
        assert (workers.state == EMPTY).all()
        assert np.isinf([workers.next_s, workers.ready_s, workers.death_s, workers.exit_s]).all()
    assert plain_numbers(s.counters, Counters) == Counters()


def test_compiled_code_gets_the_same_memory() -> None:
    s = columns(trace([0.0], 10, 2))
    compiled = s.compiled()
    s.requests.left_tokens[0] = 9
    compiled.decode.kv_tokens[3] = 5.0
    compiled.counters.arrivals += 1
    assert compiled.requests.left_tokens[0] == 9
    assert s.decode.kv_tokens[3] == 5.0
    assert s.counters.arrivals == 1
    assert (compiled.profile.kv_tokens, compiled.rules.tpot_s) == (PROFILE.kv_tokens, RULES.tpot_s)


def test_counters_are_copied_and_compared() -> None:
    live = columns(trace([0.0], 10, 2)).counters
    live.arrivals, live.step_s = 4, 1.5
    before = plain_numbers(live, Counters)
    live.arrivals += 3
    live.step_s += 0.25
    assert (before.arrivals, before.step_s) == (4, 1.5)
    grown = plain_numbers(live, Counters).since(before)
    assert grown == Counters(arrivals=3, step_s=0.25)


def test_routers_let_requests_through_one_after_another() -> None:
    arrival_s = np.array([0.0, 0.0, 0.5, 9.0])
    assert entry_times(arrival_s, 1.0).tolist() == [0.0, 1.0, 2.0, 9.0]
    assert entry_times(arrival_s, 0.0) is arrival_s
