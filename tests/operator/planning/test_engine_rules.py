"""Tests of the parts of a measured profile in the simulator.

They are the overhead, the hand-over, the time to take a sequence in, routers, and prefill batches
that wait to be filled.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from disagg_operator.autoscaling.policy.observation import Targets
from disagg_operator.performance.profile import Profile
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.traces import Trace

PLAIN = Profile(1, 0.01, 1e-4, 0.0, 0.002, 0.0, 0.0, 100_000)


def serve(profile: Profile, *requests: tuple[float, int, int], routers: int = 0) -> Any:
    arrival, prompt, output = (np.array(column) for column in zip(*requests, strict=True))
    trace = Trace("t", arrival.astype(float), prompt, np.zeros(len(prompt), np.int64), output)
    setup = Setup(profile, initial=(1, 1), most=1, aligned=True, unscored_s=0.0, routers=routers)
    return Cluster(trace, setup).run(lambda _: Targets(1, 1)).requests


def test_alone_without_extras() -> None:
    s = serve(PLAIN, (0.0, 100, 11))
    assert (s.first_s[0], s.last_s[0]) == pytest.approx((0.02, 0.04))


def test_overhead_delays_every_token_and_keeps_no_worker_busy() -> None:
    slow = serve(replace(PLAIN, overhead_s=0.5), (0.0, 100, 11), (0.001, 100, 11))
    fast = serve(PLAIN, (0.0, 100, 11), (0.001, 100, 11))
    assert slow.first_s == pytest.approx(fast.first_s + 0.5)
    assert slow.last_s == pytest.approx(fast.last_s + 0.5)


def test_the_hand_over_delays_what_comes_after_the_first_token() -> None:
    s = serve(replace(PLAIN, handover_s=0.3), (0.0, 100, 11))
    assert (s.first_s[0], s.last_s[0]) == pytest.approx((0.02, 0.34))


def test_a_request_that_arrives_holds_up_those_that_decode_and_no_idle_worker() -> None:
    """The second request arrives after 5 of the 40 steps of the first, which it delays by 100 ms.

    The second request becomes ready in the meantime.
    """
    s = serve(replace(PLAIN, take_in_s=0.1), (0.0, 100, 41), (0.03, 100, 11))
    assert s.first_s == pytest.approx([0.02, 0.05])
    assert s.last_s == pytest.approx([0.02 + 40 * 0.002 + 0.1, 0.13 + 10 * 0.002])


def test_a_request_of_one_token_is_nothing_to_decode() -> None:
    s = serve(replace(PLAIN, take_in_s=0.1), (0.0, 100, 41), (0.03, 100, 1))
    assert s.last_s == pytest.approx([0.02 + 40 * 0.002, 0.05])


def test_a_router_lets_requests_through_one_after_another() -> None:
    """The overhead includes the time of a request itself at the router, so only others are delayed.

    Two routers halve the wait.
    """
    profile = replace(PLAIN, front_s=0.1, batch_tokens=100)
    requests = ((0.0, 100, 1), (0.0, 100, 1), (0.05, 100, 1), (1.0, 100, 1))
    assert serve(profile, *requests, routers=1).first_s == pytest.approx([0.02, 0.12, 0.22, 1.02])
    assert serve(profile, *requests, routers=2).first_s == pytest.approx([0.02, 0.07, 0.12, 1.02])
    assert serve(profile, *requests).first_s == pytest.approx([0.02, 0.04, 0.07, 1.02])


def test_the_wait_to_fill_a_batch_begins_behind_the_router() -> None:
    profile = replace(PLAIN, front_s=0.1, batch_wait_s=0.05, batch_full_tokens=200)
    s = serve(profile, (0.0, 100, 1), (0.0, 100, 1), routers=1)
    assert s.first_s == pytest.approx([0.05 + 0.02, 0.1 + 0.05 + 0.02])


def test_a_large_batch_costs_more_than_its_share() -> None:
    s = serve(replace(PLAIN, a_s=0.0, b_s_per_token=0.0, h_s_per_sequence2=0.001), (0.0, 100, 11), (0.0, 100, 11))
    assert s.last_s == pytest.approx([10 * (0.002 + 4 * 0.001)] * 2)


def test_a_short_prompt_waits_for_others_and_a_long_one_does_not() -> None:
    waiting = replace(PLAIN, batch_wait_s=0.05, batch_full_tokens=200)
    s = serve(waiting, (0.0, 100, 1), (1.0, 200, 1))
    assert s.first_s == pytest.approx([0.05 + 0.02, 1.0 + 0.03])


def test_a_batch_starts_as_soon_as_it_is_full() -> None:
    waiting = replace(PLAIN, batch_wait_s=0.05, batch_full_tokens=200)
    s = serve(waiting, (0.0, 100, 1), (0.02, 100, 1))
    assert s.first_s == pytest.approx([0.02 + 0.03, 0.02 + 0.03])


def test_who_waits_behind_a_batch_waits_no_longer_than_the_rule_says() -> None:
    """The second request arrives while the first is computed, and is due 50 ms after it arrived."""
    waiting = replace(PLAIN, batch_wait_s=0.05, batch_full_tokens=200)
    s = serve(waiting, (0.0, 200, 1), (0.02, 100, 1), (0.1, 300, 1))
    assert s.first_s == pytest.approx([0.03, 0.07 + 0.02, 0.1 + 0.04])


def test_a_batch_holds_prompts_of_one_bucket_and_the_oldest_that_is_due_leads() -> None:
    """Short and long prompts alternately arrive while the first one is computed.

    The short ones, of up to 64 tokens, are computed together and first.
    """
    waiting = replace(PLAIN, batch_wait_s=0.05, batch_full_tokens=200)
    s = serve(waiting, (0.0, 1000, 1), (0.01, 60, 1), (0.02, 400, 1), (0.03, 50, 1), (0.04, 500, 1))
    free = 0.11
    assert s.first_s == pytest.approx([free, free + 0.021, free + 0.021 + 0.10, free + 0.021, free + 0.021 + 0.10])


def test_a_full_bucket_goes_before_an_older_prompt_that_is_not_due() -> None:
    waiting = replace(PLAIN, batch_wait_s=0.05, batch_full_tokens=200)
    s = serve(waiting, (0.0, 60, 1), (0.01, 300, 1))
    assert s.first_s == pytest.approx([0.05 + 0.016, 0.01 + 0.04])


def test_everything_is_served_whatever_the_rule() -> None:
    random = np.random.default_rng(3)
    arrivals = np.cumsum(random.exponential(0.05, 300))
    requests = [(float(t), int(random.integers(1, 400)), int(random.integers(1, 60))) for t in arrivals]
    s = serve(replace(PLAIN, batch_wait_s=0.05, batch_full_tokens=217, overhead_s=0.01, handover_s=0.004), *requests)
    assert not np.isnan(s.last_s).any()
    assert (s.first_s >= arrivals + 0.02).all()
    assert (s.last_s >= s.first_s).all()
