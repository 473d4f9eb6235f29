"""Decode workers against a loop that makes every step."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.operator.simulation.loads import INSTANT, PROFILE, SETUP, poisson, stay, trace

from disagg_operator.performance.profile import Profile
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.columns import DONE, DROPPED, Columns
from disagg_operator.simulation.decode import steps_s, steps_within
from disagg_operator.simulation.traces import Trace


def stepped(profile: Profile, load: Trace) -> list[float]:
    """Return when each request ends on one decode worker that makes every step.

    A request that comes inside a step joins at its end.
    """
    left: dict[int, int] = {}
    kv, now, done, coming = 0.0, 0.0, [0.0] * len(load), 0
    while coming < len(load) or left:
        while coming < len(load) and load.arrival_s[coming] <= now + 1e-9:
            left[coming] = int(load.output_tokens[coming]) - 1
            kv += load.prompt_tokens[coming] + 1
            coming += 1
        if not left:
            now = float(load.arrival_s[coming])
            continue
        now += profile.step_s(len(left), kv)
        kv += len(left)
        for r in [r for r in left if left[r] == 1]:
            done[r] = now
            kv -= load.prompt_tokens[r] + load.output_tokens[r]
            del left[r]
        for r in left:
            left[r] -= 1
    return done


def test_decode_times_are_those_of_every_step_made() -> None:
    load = poisson(4, 400, 3, output=(2, 300))
    setup = Setup(INSTANT, initial=(1, 1), aligned=True, drop_s=math.inf)
    s = Cluster(load, setup).run(stay).requests
    assert s.last_s == pytest.approx(stepped(INSTANT, load), abs=1e-5)
    loose = Cluster(load, replace(setup, aligned=False)).run(stay).requests
    assert (loose.last_s - load.arrival_s).mean() == pytest.approx((s.last_s - load.arrival_s).mean(), rel=0.03)


def test_the_step_counters_are_what_the_profile_says_they_took() -> None:
    cluster = Cluster(poisson(8, 2000, 4), SETUP).run(stay)
    count, p = cluster.counters, PROFILE
    assert count.step_s == pytest.approx(
        p.d_s * count.steps + p.e_s_per_sequence * count.step_sequences + p.f_s_per_token * count.step_kv_tokens
    )
    assert count.prefill_busy_s == pytest.approx(
        p.a_s * count.batches + p.b_s_per_token * count.batch_tokens + p.c_s_per_token2 * count.batch_tokens_squared
    )
    assert count.step_sequences == pytest.approx(cluster.trace.output_tokens.sum() - len(cluster.trace))


def test_decode_queues_for_room_and_who_fits_nowhere_is_dropped() -> None:
    small = replace(INSTANT, kv_tokens=2000)
    load = trace([0.0, 0.0, 0.0], [1500, 1500, 2500], 100)
    s = Cluster(load, Setup(small, initial=(1, 1))).run(stay).requests
    assert s.status.tolist() == [DONE, DONE, DROPPED]
    assert s.last_s[1] > 1.9 * s.last_s[0]  # one after the other


def a_worker(sequences: int, kv_tokens: float, h_s_per_sequence2: float) -> Columns:
    profile = replace(PROFILE, h_s_per_sequence2=h_s_per_sequence2)
    s = Cluster(trace([0.0], 10, 2), Setup(profile)).columns
    s.decode.sequences[0], s.decode.kv_tokens[0] = sequences, kv_tokens
    return s.compiled()


@settings(deadline=None)
@given(st.integers(1, 200), st.floats(0, 400_000), st.integers(0, 3000), st.sampled_from([0.0, 2e-6]))
def test_steps_take_what_they_take_one_by_one(sequences: int, kv_tokens: float, n: int, h: float) -> None:
    s, p = a_worker(sequences, kv_tokens, h), replace(PROFILE, h_s_per_sequence2=h)
    one_by_one = sum(p.step_s(sequences, kv_tokens + i * sequences) for i in range(n))
    assert steps_s(s, 0, float(n)) == pytest.approx(one_by_one)
    assert steps_within(s, 0, steps_s(s, 0, float(n))) == pytest.approx(n, abs=1e-6)


def test_without_sequences_time_goes_by_in_empty_steps() -> None:
    assert steps_within(a_worker(0, 0.0, 0.0), 0, 10.0) == pytest.approx(10.0 / PROFILE.d_s)


@pytest.mark.parametrize("aligned", [False, True])
def test_an_arrival_holds_up_the_sequences_that_run(aligned: bool) -> None:
    """The second request comes while the first decodes; if it has one token, it never decodes."""
    profile = replace(INSTANT, take_in_s=0.5)
    setup = Setup(profile, initial=(1, 1), aligned=aligned, drop_s=math.inf)
    alone = Cluster(trace([0.0], 100, 50), setup).run(stay).requests.last_s[0]
    held = Cluster(trace([0.0, 0.1], 100, [50, 2]), setup).run(stay).requests
    free = Cluster(trace([0.0, 0.1], 100, [50, 1]), setup).run(stay).requests
    assert held.last_s[0] == pytest.approx(alone + 0.5, abs=0.01)
    assert free.last_s[0] == pytest.approx(alone, abs=1e-6)
