"""The simulator against theory, against a loop that makes every step, and against its own books."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.performance.profile import PROFILES, Profile
from disagg_operator.simulation import monolithic, policies, state
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.score import score
from disagg_operator.simulation.traces import Trace

PROFILE = PROFILES["70b-h100-tp4"]
INSTANT = replace(PROFILE, a_s=0.0, b_s_per_token=1e-12, c_s_per_token2=0.0)  # prefill takes no time
SETUP = Setup(PROFILE, drop_s=math.inf, initial=(2, 2))


def trace(arrival_s: Any, prompt: Any, output: Any) -> Trace:
    at = np.asarray(arrival_s, float)
    prompt, output = (np.broadcast_to(np.asarray(v), at.shape).astype(np.int64) for v in (prompt, output))
    return Trace("t", at, prompt, np.zeros_like(prompt), output)


def poisson(
    rate: float, n: int, seed: int, prompt: tuple[int, int] = (20, 3000), output: tuple[int, int] = (1, 400)
) -> Trace:
    r = np.random.default_rng(seed)
    return trace(np.cumsum(r.exponential(1 / rate, n)), r.integers(*prompt, n), r.integers(*output, n))


def stay(o: Observation) -> Targets:
    return Targets(o.prefill.pods.replicas, o.decode.pods.replicas)


class Restless:
    """Any size at any time."""

    def __init__(self, seed: int, flip: bool = False) -> None:
        self.random, self.flip = np.random.default_rng(seed), flip

    def __call__(self, _: Observation) -> Targets:
        sizes = self.random.integers(1, 7, 2)
        return Targets(int(sizes[0]), int(sizes[1]), flip=int(self.random.integers(-2, 3)) if self.flip else 0)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("aligned", [False, True])
def test_every_request_ends_exactly_once_whatever_fails_and_moves(seed: int, aligned: bool) -> None:
    load = poisson(12, 6000, seed)
    setup = replace(
        SETUP, grace_s=math.inf, failures_per_worker_hour=20.0, cold_start_s=(5.0, 20.0), seed=seed, aligned=aligned
    )
    cluster = Cluster(load, setup).run(Restless(seed, flip=True))
    s = cluster.sim
    assert (s.status == state.DONE).all()  # deaths, drains and flips lose nothing
    assert s.tally[state.RETRIES] > 10
    assert cluster.flips > 0
    assert s.tally[state.ENDED] == s.tally[state.FIRST] == len(load)
    assert s.tally[state.ENDED_TOKENS] == load.output_tokens.sum()
    assert (s.first_s > load.arrival_s).all()
    assert (s.last_s >= s.first_s).all()
    assert s.tally[state.QUEUED_TOKENS] == s.tally[state.D_HEAD] - s.tally[state.D_TAIL] == 0
    assert (s.left == 0).all()


def test_what_waits_too_long_or_drains_too_long_is_counted_as_lost() -> None:
    load = poisson(40, 12_000, 1, output=(200, 2000))
    setup = replace(SETUP, drop_s=5.0, grace_s=10.0, cold_start_s=(5.0, 20.0))
    cluster = Cluster(load, setup).run(Restless(1))
    result = score(cluster)
    status = np.bincount(cluster.sim.status, minlength=4)
    assert status[state.PENDING] == 0
    assert (result.dropped, result.killed) == (status[state.DROPPED], status[state.KILLED])
    assert result.dropped > 0
    assert result.killed > 0
    assert status.sum() == len(load)
    assert result.attainment <= status[state.DONE] / len(load)


@pytest.mark.parametrize("utilisation", [0.5, 0.8])
def test_one_prefill_worker_waits_as_an_md1_queue_does(utilisation: float) -> None:
    service_s = PROFILE.isolated_s(4096)  # a batch of its own
    load = poisson(utilisation / service_s, 60_000, 5, prompt=(4096, 4097), output=(1, 2))
    s = Cluster(load, replace(SETUP, initial=(1, 1))).run(stay).sim
    wait_s = float((s.first_s - load.arrival_s).mean()) - service_s
    assert wait_s == pytest.approx(utilisation * service_s / (2 * (1 - utilisation)), rel=0.06)
    assert s.tally[state.P_BUSY_S] == pytest.approx(len(load) * service_s)


def test_waiting_prompts_share_a_batch_and_its_end() -> None:
    load = trace([0.0, 0.01, 0.02, 0.03], [4096, 1000, 2000, 2000], 1)
    s = Cluster(load, replace(SETUP, initial=(1, 1))).run(stay).sim
    first = PROFILE.isolated_s(4096)
    second = first + PROFILE.prefill_s(3000, 1000**2 + 2000**2)  # the third does not fit any more
    assert s.first_s == pytest.approx([first, second, second, second + PROFILE.isolated_s(2000)])


def stepped(profile: Profile, load: Trace) -> list[float]:
    """When each request ends on one decode worker, step by step; who comes inside a step joins at its end."""
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
    s = Cluster(load, setup).run(stay).sim
    assert s.last_s == pytest.approx(stepped(INSTANT, load), abs=1e-5)
    loose = Cluster(load, replace(setup, aligned=False)).run(stay).sim
    assert (loose.last_s - load.arrival_s).mean() == pytest.approx((s.last_s - load.arrival_s).mean(), rel=0.03)


def test_the_step_counters_are_what_the_profile_says_they_took() -> None:
    cluster = Cluster(poisson(8, 2000, 4), SETUP).run(stay)
    t, p = cluster.sim.tally, PROFILE
    assert t[state.STEP_S] == pytest.approx(
        p.d_s * t[state.STEPS] + p.e_s_per_sequence * t[state.STEP_SEQUENCES] + p.f_s_per_token * t[state.STEP_KV]
    )
    assert t[state.P_BUSY_S] == pytest.approx(
        p.a_s * t[state.BATCHES] + p.b_s_per_token * t[state.BATCH_TOKENS] + p.c_s_per_token2 * t[state.BATCH_TOKENS2]
    )
    assert t[state.STEP_SEQUENCES] == pytest.approx(cluster.trace.output_tokens.sum() - len(cluster.trace))


def test_decode_queues_for_room_and_who_fits_nowhere_is_dropped() -> None:
    small = replace(INSTANT, kv_tokens=2000)
    load = trace([0.0, 0.0, 0.0], [1500, 1500, 2500], 100)
    s = Cluster(load, Setup(small, initial=(1, 1))).run(stay).sim
    assert s.status.tolist() == [state.DONE, state.DONE, state.DROPPED]
    assert s.last_s[1] > 1.9 * s.last_s[0]  # one after the other


def test_transfers_share_a_network() -> None:
    load = trace([0.0, 0.0], [999, 999], 2)
    s = Cluster(load, Setup(INSTANT, initial=(2, 1), link_tokens_per_s=1000.0)).run(stay).sim
    assert s.last_s == pytest.approx([1.0 + PROFILE.step_s(1, 1000), 2.0 + PROFILE.step_s(1, 1000)], rel=1e-3)
    hidden = Cluster(load, Setup(INSTANT, initial=(2, 1))).run(stay).sim
    assert hidden.last_s.max() < 0.1


def test_workers_start_cold_wait_for_nodes_and_are_paid_from_creation() -> None:
    load = trace(np.arange(0, 1200.0, 0.5), 100, 2)
    ready: dict[float, int] = {}

    def grow(o: Observation) -> Targets:
        ready[o.now_s] = o.prefill.pods.ready
        return Targets(3, 2)

    cluster = Cluster(
        load, replace(SETUP, cold_start_s=(100.0, 100.0), warm_workers=2, node_start_s=(200.0, 200.0))
    ).run(grow)
    begin = min(ready)
    assert (ready[begin + 285], ready[begin + 315]) == (2, 3)  # 100 s and 200 s for a node
    hours = (4 * 1200 + (1200 - begin)) * PROFILE.gpus / 3600
    assert cluster.gpu_s / 3600 == pytest.approx(hours, rel=0.001)
    assert (cluster.starts, cluster.actions) == (1, 1)


def test_a_policy_sees_the_scrape_before_the_last_and_nothing_while_blind() -> None:
    load = trace(np.arange(0, 300.0, 0.5) ** 1.01, 100, 2)
    seen: list[Observation] = []

    def look(o: Observation) -> Targets:
        seen.append(o)
        return stay(o)

    cluster = Cluster(load, replace(SETUP, blind_s=((150.0, 200.0),))).run(look)
    arrivals = cluster.series["arrivals"]
    assert seen[0].now_s == 30.0
    for i, o in enumerate(seen):
        assert o.blind == (150 <= o.now_s < 200)
        assert o.blind or o.prefill.arrivals == arrivals[i]
        assert o.prefill.pods.ready == 2  # counts are never blind


def test_draining_takes_the_idlest_and_ends_what_runs() -> None:
    load = trace([0.0, 1.0, 2.0, 400.0], 100, [4000, 4000, 4000, 2])

    def shrink(o: Observation) -> Targets:
        return Targets(1, 1)

    cluster = Cluster(load, replace(SETUP, initial=(2, 3), grace_s=math.inf)).run(shrink)
    assert (cluster.sim.status == state.DONE).all()
    assert score(cluster).killed == 0
    short = Cluster(load, replace(SETUP, initial=(2, 3), grace_s=30.0)).run(shrink)
    assert score(short).killed == 2


def test_the_same_seed_is_the_same_day() -> None:
    load, setup = poisson(10, 2000, 6), replace(SETUP, failures_per_worker_hour=10.0)
    one, two = (score(Cluster(load, setup).run(Restless(1))) for _ in range(2))
    other = score(Cluster(load, replace(setup, seed=1)).run(Restless(1)))
    assert one == two
    assert one != other


def test_monolithic_serving_of_one_request_is_its_prefill_and_its_steps() -> None:
    load = trace([0.0], [3000], [5])
    served = monolithic.serve(load, PROFILE, 1, chunk_tokens=2048)
    chunks = 2 * PROFILE.a_s + PROFILE.b_s_per_token * 3000 + PROFILE.c_s_per_token2 * 3000**2
    steps = sum(PROFILE.step_s(1, 3001 + i) for i in range(4))
    assert served.first_s[0] == pytest.approx(chunks)
    assert served.last_s[0] == pytest.approx(chunks + steps)
    assert served.busy_s == pytest.approx(chunks + steps)


def test_monolithic_serving_ends_every_request_and_names_what_can_not_fit() -> None:
    load = poisson(6, 3000, 7)
    served = monolithic.serve(load, PROFILE, 4)
    assert (served.first_s > load.arrival_s).all()
    assert (served.last_s >= served.first_s).all()
    with pytest.raises(ValueError, match="request 0 needs more than"):
        monolithic.serve(trace([0.0], [500_000], [1]), PROFILE, 1)


def test_workers_that_change_sides_serve_a_load_that_moves_between_the_pools() -> None:
    """Twenty minutes of long prompts and short answers, then the other way round, and so on: what one pool lacks the other has."""
    r = np.random.default_rng(2)
    at = np.cumsum(r.exponential(1 / 8, 40_000))
    answers = (at // 1200).astype(int) % 2 == 1
    prompt, output = (
        np.where(answers, 300, 3000) * r.lognormal(0, 0.4, len(at)),
        np.where(answers, 500, 60) * r.lognormal(0, 0.4, len(at)),
    )
    load = trace(at, np.maximum(prompt, 1), np.maximum(output, 2))
    setup = replace(Setup(PROFILE), flip_s=5.0)
    new, moved = (
        Cluster(load, setup).run(policies.make(policies.PREDICTIVE, setup, flip_s=flip_s)) for flip_s in (None, 5.0)
    )
    assert moved.flips > 10
    assert moved.starts < 0.7 * new.starts
    assert moved.gpu_s < new.gpu_s
    assert score(moved).attainment > score(new).attainment + 0.02
