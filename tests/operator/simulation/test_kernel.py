"""The event loop against theory and against its own books."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.operator.simulation.loads import INSTANT, PROFILE, SETUP, Restless, poisson, stay, trace

from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.columns import DONE, DROPPED, KILLED, PENDING
from disagg_operator.simulation.score import score


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("aligned", [False, True])
def test_every_request_ends_exactly_once_whatever_fails_and_moves(seed: int, aligned: bool) -> None:
    load = poisson(12, 6000, seed)
    setup = replace(
        SETUP,
        grace_s=math.inf,
        failures_per_worker_hour=20.0,
        cold_start_s=(5.0, 20.0),
        seed=seed,
        aligned=aligned,
    )
    cluster = Cluster(load, setup).run(Restless(seed, flip=True))
    s = cluster.requests
    count = cluster.counters
    assert (s.status == DONE).all()  # deaths, drains and flips lose nothing
    assert count.retries_tail > 10
    assert cluster.flips > 0
    assert count.ended == count.first_tokens == len(load)
    assert count.ended_tokens == load.output_tokens.sum()
    assert (s.first_s > load.arrival_s).all()
    assert (s.last_s >= s.first_s).all()
    assert count.queued_tokens == count.decode_head - count.decode_tail == 0
    assert (s.left_tokens == 0).all()


def test_what_waits_too_long_or_drains_too_long_is_counted_as_lost() -> None:
    load = poisson(40, 12_000, 1, output=(200, 2000))
    setup = replace(SETUP, drop_s=5.0, grace_s=10.0, cold_start_s=(5.0, 20.0))
    cluster = Cluster(load, setup).run(Restless(1))
    result = score(cluster)
    status = np.bincount(cluster.requests.status, minlength=4)
    assert status[PENDING] == 0
    assert (result.dropped, result.killed) == (status[DROPPED], status[KILLED])
    assert result.dropped > 0
    assert result.killed > 0
    assert status.sum() == len(load)
    assert result.attainment <= status[DONE] / len(load)


@pytest.mark.parametrize("utilisation", [0.5, 0.8])
def test_one_prefill_worker_waits_as_an_md1_queue_does(utilisation: float) -> None:
    service_s = PROFILE.isolated_s(4096)  # a batch of its own
    load = poisson(utilisation / service_s, 60_000, 5, prompt=(4096, 4097), output=(1, 2))
    cluster = Cluster(load, replace(SETUP, initial=(1, 1))).run(stay)
    wait_s = float((cluster.requests.first_s - load.arrival_s).mean()) - service_s
    assert wait_s == pytest.approx(utilisation * service_s / (2 * (1 - utilisation)), rel=0.06)
    assert cluster.counters.prefill_busy_s == pytest.approx(len(load) * service_s)


def test_waiting_prompts_share_a_batch_and_its_end() -> None:
    load = trace([0.0, 0.01, 0.02, 0.03], [4096, 1000, 2000, 2000], 1)
    s = Cluster(load, replace(SETUP, initial=(1, 1))).run(stay).requests
    first = PROFILE.isolated_s(4096)
    second = first + PROFILE.prefill_s(3000, 1000**2 + 2000**2)  # the third does not fit any more
    assert s.first_s == pytest.approx([first, second, second, second + PROFILE.isolated_s(2000)])


def test_transfers_share_a_network() -> None:
    load = trace([0.0, 0.0], [999, 999], 2)
    s = Cluster(load, Setup(INSTANT, initial=(2, 1), link_tokens_per_s=1000.0)).run(stay).requests
    assert s.last_s == pytest.approx([1.0 + PROFILE.step_s(1, 1000), 2.0 + PROFILE.step_s(1, 1000)], rel=1e-3)
    hidden = Cluster(load, Setup(INSTANT, initial=(2, 1))).run(stay).requests
    assert hidden.last_s.max() < 0.1
