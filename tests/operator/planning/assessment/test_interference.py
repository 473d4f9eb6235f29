"""Tests of whether prefill disturbs decode, on windows of engines that do so by a known amount."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from tests.operator.planning.assessment.test_request_load import read

from disagg_operator.planning.assessment.interference import Interference, judge
from disagg_operator.planning.assessment.readings import WatchWindow


def watched(
    per_prompt_token_s: float, per_running_s: float = 0.0, windows: int = 120, noise: float = 0.1, seed: int = 1
) -> tuple[WatchWindow, ...]:
    """Return windows in which a token takes 20 ms, and longer by prompt tokens and requests."""
    random, found = np.random.default_rng(seed), []
    for i in range(windows):
        running = float(random.integers(4, 40))
        # Where more requests run, more prompts come, too.
        computed = float(random.exponential(100 * running))
        gap_s = 0.02 + per_prompt_token_s * computed + per_running_s * running
        gap_s *= float(random.lognormal(0, noise))
        gaps = 20 * running
        found.append(WatchWindow("a", i + 1.0, 1.0, 1.0, computed, gaps, gaps * gap_s, gaps * (gap_s > 0.05), running))
    return tuple(found)


def judged(*args: float, **more: float) -> Interference:
    return judge(read(windows=watched(*args, **more)), 0.01)  # type: ignore[arg-type]


def test_prefill_that_delays_tokens_is_found() -> None:
    found = judged(10e-6)
    assert found.verdict == "yes"
    assert found.busy is not None
    assert found.quiet is not None
    assert found.busy.gap_s > 1.2 * found.quiet.gap_s
    assert found.busy.late_share > found.quiet.late_share
    assert found.busy.computed_per_s > 3 * found.quiet.computed_per_s
    assert found.busy.running == pytest.approx(found.quiet.running, rel=0.2)


@pytest.mark.parametrize("seed", range(20))
def test_a_larger_batch_is_not_taken_for_a_disturbance(seed: int) -> None:
    assert judged(0.0, 0.3e-3, seed=seed).verdict == "no"


@pytest.mark.parametrize("seed", range(20))
def test_chance_is_not_taken_for_a_disturbance(seed: int) -> None:
    assert judged(0.0, noise=0.5, windows=40, seed=seed).verdict == "no"


def test_a_tail_alone_is_a_disturbance() -> None:
    """Few gaps are long, which hardly shows in the mean."""
    windows = tuple(
        replace(
            w,
            gaps_s=w.gaps_s * (1.03 if w.computed_tokens > 1500 else 1),
            late=w.gaps * 0.03 * (w.computed_tokens > 1500),
        )
        for w in watched(0.0, noise=0.01)
    )
    found = judge(read(windows=windows), 0.01)
    assert found.verdict == "yes"


def test_what_cannot_be_compared_is_not_known() -> None:
    few = judged(10e-6, windows=20)
    assert (few.verdict, few.why) == ("unknown", "too little was seen: 10 of 20 looks can be compared, 12 are needed")
    assert judge(read(windows=()), 0.01).why == "the times of tokens are not known"
    assert judge(read(windows=watched(10e-6), late_s=math.inf), 0.01).verdict == "unknown"
    blind = tuple(replace(w, computed_tokens=math.nan) for w in watched(10e-6))
    assert judge(read(windows=blind), 0.01).why.startswith("too little was seen: 0 of 120")
    alike = judge(read(windows=tuple(replace(w, computed_tokens=500.0) for w in watched(0.0))), 0.01)
    assert (alike.verdict, alike.why) == ("unknown", "as many prompt tokens were computed at all times")
    assert alike.busy is not None


def test_workers_are_compared_with_themselves() -> None:
    """A slow worker with many prompts beside a fast one with few is no disturbance."""
    slow = tuple(
        replace(w, worker="slow", gaps_s=3 * w.gaps_s, computed_tokens=w.computed_tokens + 9000) for w in watched(0.0)
    )
    found = judge(read(windows=(*watched(0.0, seed=2), *slow)), 0.01)
    assert found.verdict != "yes"
