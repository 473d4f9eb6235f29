"""The cluster starts, stops, moves and pays for workers, and shows a policy what it may see."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.operator.simulation.loads import PROFILE, SETUP, Restless, poisson, stay, trace

from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.simulation import named_policies
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.columns import DONE
from disagg_operator.simulation.score import score


def test_workers_start_cold_wait_for_nodes_and_are_paid_from_creation() -> None:
    load = trace(np.arange(0, 1200.0, 0.5), 100, 2)
    ready: dict[float, int] = {}

    def grow(o: Observation) -> Targets:
        ready[o.now_s] = o.prefill.pods.ready
        return Targets(3, 2)

    setup = replace(SETUP, cold_start_s=(100.0, 100.0), warm_workers=2, node_start_s=(200.0, 200.0))
    cluster = Cluster(load, setup).run(grow)
    begin = min(ready)
    assert (ready[begin + 285], ready[begin + 315]) == (2, 3)  # 100 s and 200 s for a node
    hours = (4 * 1200 + (1200 - begin)) * PROFILE.gpus / 3600
    assert cluster.gpu_s / 3600 == pytest.approx(hours, rel=0.001)
    assert (cluster.starts, cluster.actions) == (1, 1)


def test_workers_without_a_place_wait_for_one_unpaid_and_in_order() -> None:
    """The cluster holds four: what is asked beyond them starts once others have gone."""
    seen: list[Observation] = []

    def policy(o: Observation) -> Targets:
        seen.append(o)
        return Targets(3, 3) if o.now_s < 600 else Targets(1, 3)

    setup = replace(SETUP, room=4, cold_start_s=(60.0, 60.0))
    cluster = Cluster(trace(np.arange(0.0, 1200.0, 10.0), 100, 10), setup).run(policy)
    at = {o.now_s: o for o in seen}
    for pods in (at[300.0].prefill.pods, at[300.0].decode.pods):
        assert (pods.replicas, pods.ready, pods.starting_ages_s, pods.unplaced_s) == (3, 2, (270.0,), (270.0,))
    assert (at[645.0].prefill.pods.ready, at[645.0].decode.pods.ready) == (1, 2)
    assert at[645.0].decode.pods.unplaced_s == ()
    assert (at[690.0].decode.pods.ready, at[690.0].decode.pods.cold_start_s) == (3, 60.0)
    assert cluster.starts == 2
    assert cluster.gpu_s == pytest.approx(4 * 4 * 1200.0, rel=0.02)


def test_each_pool_has_its_own_smallest_size() -> None:
    setup = replace(SETUP, min_prefill=2, min_decode=3)
    series = Cluster(trace([0.0, 300.0], 100, 10), setup).run(lambda _: Targets(1, 1)).series
    assert (series["prefill_desired"][-1], series["decode_desired"][-1]) == (2, 3)


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
    assert (cluster.requests.status == DONE).all()
    assert score(cluster).killed == 0
    short = Cluster(load, replace(SETUP, initial=(2, 3), grace_s=30.0)).run(shrink)
    assert score(short).killed == 2


def test_the_same_seed_is_the_same_day() -> None:
    load, setup = poisson(10, 2000, 6), replace(SETUP, failures_per_worker_hour=10.0)
    one, two = (score(Cluster(load, setup).run(Restless(1))) for _ in range(2))
    other = score(Cluster(load, replace(setup, seed=1)).run(Restless(1)))
    assert one == two
    assert one != other


def test_workers_that_change_sides_serve_a_load_that_moves_between_the_pools() -> None:
    """Long prompts and short answers for twenty minutes, then the other way round, and so on.

    Whatever one pool lacks the other has.
    """
    r = np.random.default_rng(2)
    at = np.cumsum(r.exponential(1 / 8, 40_000))
    answers = (at // 1200).astype(int) % 2 == 1
    prompt = np.where(answers, 300, 3000) * r.lognormal(0, 0.4, len(at))
    output = np.where(answers, 500, 60) * r.lognormal(0, 0.4, len(at))
    load = trace(at, np.maximum(prompt, 1), np.maximum(output, 2))
    setup = replace(Setup(PROFILE), flip_s=5.0)
    policies = [named_policies.make(named_policies.PREDICTIVE, setup, flip_s=flip_s) for flip_s in (None, 5.0)]
    new, moved = (Cluster(load, setup).run(policy) for policy in policies)
    assert moved.flips >= 10
    assert moved.starts < 0.7 * new.starts
    assert moved.gpu_s < new.gpu_s
    assert score(moved).attainment > score(new).attainment + 0.02


def test_an_unknown_order_of_the_queue_is_named() -> None:
    with pytest.raises(ValueError, match="queue_order: 'Shortest' is none of FirstComeFirstServed, EarliestDeadline"):
        Cluster(trace([0.0], 100, 2), replace(SETUP, queue_order="Shortest"))
