"""The order of prompts by deadline: those due first, then those late; those that waited long first.

It is compared with the same rules, written plainly.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.performance.profile import PROFILES
from disagg_operator.simulation.cluster import Cluster, Setup
from disagg_operator.simulation.columns import DONE
from disagg_operator.simulation.ordering import EARLIEST_DEADLINE, FIRST_COME
from disagg_operator.simulation.traces import Trace

# A thousand tokens a second, in batches of a thousand: a prompt's tokens are its milliseconds.
PROFILE = replace(PROFILES["70b-h100-tp4"], a_s=0.0, b_s_per_token=0.001, c_s_per_token2=0.0, batch_tokens=1000)
SETUP = Setup(PROFILE, initial=(1, 1), unscored_s=0.0, queue_order=EARLIEST_DEADLINE, drop_s=math.inf)
# The bundled engine's batches: of one length bucket.
ENGINE = replace(PROFILE, batch_wait_s=0.05, batch_full_tokens=500)


def stay(_: Observation) -> Targets:
    return Targets(1, 1)


def first_tokens_s(arrival_s: list[float], prompt: list[int], setup: Setup = SETUP) -> list[float]:
    n = len(arrival_s)
    trace = Trace("t", np.array(arrival_s), np.array(prompt), np.zeros(n, np.int64), np.ones(n, np.int64))
    served = Cluster(trace, setup).run(stay).requests
    assert (served.status == DONE).all()
    return [round(float(t), 6) for t in served.first_s]


def test_who_is_due_first_is_computed_first() -> None:
    """While the first is computed a long one and then a short one come.

    The long one may take 5 times what it takes alone.
    """
    assert first_tokens_s([0.0, 0.1, 0.2], [900, 800, 300]) == [0.9, 2.0, 1.2]
    assert first_tokens_s([0.0, 0.1, 0.2], [900, 800, 300], replace(SETUP, queue_order=FIRST_COME)) == [0.9, 1.7, 2.0]


def test_who_is_late_already_waits_for_those_who_are_not() -> None:
    # The second and third can't have their first token by 1.05 s any more when the first is
    # through; the last two can.
    arrivals, prompts = [0.0, 0.05, 0.05, 0.85, 0.85], [950, 150, 150, 430, 430]
    assert first_tokens_s(arrivals, prompts) == [0.95, 2.11, 2.11, 1.81, 1.81]


def test_nobody_joins_a_batch_who_would_make_another_late() -> None:
    # At 0.9 s the second (due at 1.3) has 0.4 s left: with the third in its batch it would be late.
    assert first_tokens_s([0.0, 0.3, 0.4], [900, 190, 700]) == [0.9, 1.09, 1.79]


def test_late_ones_fill_a_batch_that_nobody_on_time_is_left_for() -> None:
    assert first_tokens_s([0.0, 0.05, 0.5], [950, 200, 200]) == [0.95, 1.35, 1.35]


def test_nobody_waits_for_ever() -> None:
    """The worker is always busy with prompts that can be on time.

    A late one gets its turn after the patience.
    """
    arrivals = [0.0, 0.1, *np.arange(2.6, 40.0, 0.5).tolist()]
    prompts = [3000, 495, *[510] * 75]
    waits = first_tokens_s(arrivals, prompts, replace(SETUP, patience_s=10.0))
    assert 10.0 < waits[1] < 12.0


@pytest.mark.parametrize("profile", [PROFILE, ENGINE])
@pytest.mark.parametrize("order", [FIRST_COME, EARLIEST_DEADLINE])
def test_the_books_are_even_in_any_order(profile: Any, order: str) -> None:
    r = np.random.default_rng(3)
    n = 3000
    arrivals, prompts, outputs = np.cumsum(r.exponential(0.28, n)), r.integers(1, 600, n), r.integers(1, 9, n)
    trace = Trace("t", arrivals, prompts, np.zeros(n, np.int64), outputs)
    cluster = Cluster(trace, replace(SETUP, profile=profile, queue_order=order)).run(stay)
    count = cluster.counters
    assert (cluster.requests.status == DONE).all()
    assert count.queued_tokens == count.late == count.waiting_tail - count.waiting_head == 0
    assert sorted(cluster.columns.queues.waiting[:n].tolist()) == list(range(n))


def test_more_are_on_time_than_first_come_first_served() -> None:
    """A burst that brings a little more than can be served in time."""
    r = np.random.default_rng(5)
    at = np.sort(np.concatenate([r.uniform(0, 600, 1200), r.uniform(300, 310, 60)]))
    trace = Trace("t", at, r.integers(50, 600, len(at)), np.zeros(len(at), np.int64), np.ones(len(at), np.int64))

    def late(order: str) -> int:
        s = Cluster(trace, replace(SETUP, queue_order=order)).run(stay).requests
        return int((s.first_s - s.arrival_s > s.ttft_limit_s).sum())

    assert late(EARLIEST_DEADLINE) < 0.5 * late(FIRST_COME)


def plainly(arrival_s: list[float], prompt: list[int], patience_s: float) -> list[float]:
    """Return the times of first tokens on one worker, by the rules as they are said."""
    first, now, waiting, coming, batches = [math.nan] * len(arrival_s), 0.0, list[int](), 0, 0

    def alone_s(r: int) -> float:
        return prompt[r] / 1000

    def due_s(r: int) -> float:
        return arrival_s[r] + max(1.0, 5 * alone_s(r))

    while coming < len(arrival_s) or waiting:
        if not waiting:
            now = max(now, arrival_s[coming])
        while coming < len(arrival_s) and arrival_s[coming] <= now:
            waiting.append(coming)
            coming += 1
        late = [r for r in waiting if now + alone_s(r) > due_s(r)]
        on_time = [r for r in waiting if r not in late]
        fine = sorted(on_time, key=lambda r: (min(due_s(r), arrival_s[r] + patience_s), r))
        least_s = {0: patience_s, 1: 2 * patience_s, 2: patience_s, 3: math.inf}[batches % 4]
        old = [r for r in late if now - arrival_s[r] > least_s]
        batch, end_by_s, someone_left, old_left = list[int](), math.inf, False, False
        for r in [*old, *fine, *(r for r in late if r not in old)]:
            tokens, first_late = sum(prompt[b] for b in batch) + prompt[r], r in late and r not in old
            own_s = due_s(r) if r in fine else math.inf
            if first_late and someone_left:
                break
            if r in old and old_left:
                continue
            if batch and tokens > 1000:
                someone_left = True
                if r not in old:
                    break
                old_left = True
                continue
            if batch and now + tokens / 1000 > min(end_by_s, own_s):
                if first_late:
                    break
                someone_left = True
                continue
            batch.append(r)
            end_by_s = min(end_by_s, own_s)
        batches += 1
        now += sum(prompt[r] for r in batch) / 1000
        for r in batch:
            first[r] = now
            waiting.remove(r)
    return first


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 1500), st.integers(1, 1600)), min_size=1, max_size=40),
    st.sampled_from([0.8, 2.1, 7.3]),
)
def test_as_the_rules_say(coming: list[tuple[int, int]], patience_s: float) -> None:
    # Times in odd microseconds: no two things fall together, whose order is not said.
    arrivals = np.cumsum([gap / 1000 + 0.000_013_7 * (i + 1) for i, (gap, _) in enumerate(coming)]).tolist()
    prompts = [tokens for _, tokens in coming]
    assert first_tokens_s(arrivals, prompts, replace(SETUP, patience_s=patience_s)) == pytest.approx(
        plainly(arrivals, prompts, patience_s), abs=2e-6
    )
