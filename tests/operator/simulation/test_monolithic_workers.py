"""Monolithic serving against the sum of its iterations."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.operator.simulation.loads import PROFILE, poisson, trace

from disagg_operator.simulation.monolithic_workers import serve


def test_monolithic_serving_of_one_request_is_its_prefill_and_its_steps() -> None:
    load = trace([0.0], [3000], [5])
    served = serve(load, PROFILE, 1, chunk_tokens=2048)
    chunks = 2 * PROFILE.a_s + PROFILE.b_s_per_token * 3000 + PROFILE.c_s_per_token2 * 3000**2
    steps = sum(PROFILE.step_s(1, 3001 + i) for i in range(4))
    assert served.first_s[0] == pytest.approx(chunks)
    assert served.last_s[0] == pytest.approx(chunks + steps)
    assert served.busy_s == pytest.approx(chunks + steps)


def test_monolithic_serving_ends_every_request_and_names_what_can_not_fit() -> None:
    load = poisson(6, 3000, 7)
    served = serve(load, PROFILE, 4)
    assert (served.first_s > load.arrival_s).all()
    assert (served.last_s >= served.first_s).all()
    with pytest.raises(ValueError, match="request 0 needs more than"):
        serve(trace([0.0], [500_000], [1]), PROFILE, 1)


def test_a_request_goes_where_there_is_room_and_waits_where_there_is_none() -> None:
    """A worker holds one of three requests; the third is prefilled behind the first."""
    profile = replace(PROFILE, kv_tokens=1100)
    served = serve(trace([0.0, 0.0, 0.0], [1000, 1000, 1000], 50), profile, 2)
    assert served.first_s[:2] == pytest.approx([PROFILE.isolated_s(1000)] * 2)
    assert served.first_s[2] == pytest.approx(served.last_s[0] + PROFILE.isolated_s(1000))
