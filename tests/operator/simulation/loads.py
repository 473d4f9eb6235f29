"""Loads and policies that the simulator's tests share."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.performance.profile import PROFILES
from disagg_operator.simulation.cluster import Setup
from disagg_operator.simulation.traces import Trace

PROFILE = PROFILES["70b-h100-tp4"]
# Prefill takes no time.
INSTANT = replace(PROFILE, a_s=0.0, b_s_per_token=1e-12, c_s_per_token2=0.0)
SETUP = Setup(PROFILE, drop_s=math.inf, initial=(2, 2))

Range = tuple[int, int]


def trace(arrival_s: Any, prompt: Any, output: Any) -> Trace:
    """Return a trace; a single prompt or output stands for all."""
    at = np.asarray(arrival_s, float)
    prompt, output = (np.broadcast_to(np.asarray(v), at.shape).astype(np.int64) for v in (prompt, output))
    return Trace("t", at, prompt, np.zeros_like(prompt), output)


def poisson(rate: float, n: int, seed: int, prompt: Range = (20, 3000), output: Range = (1, 400)) -> Trace:
    """Return n requests at random times, `rate` of them per second."""
    r = np.random.default_rng(seed)
    return trace(np.cumsum(r.exponential(1 / rate, n)), r.integers(*prompt, n), r.integers(*output, n))


def stay(o: Observation) -> Targets:
    """Keep the fleet as it is."""
    return Targets(o.prefill.pods.replicas, o.decode.pods.replicas)


class Restless:
    """A policy that wants any size at any time, and moves workers between the pools if told to."""

    def __init__(self, seed: int, flip: bool = False) -> None:
        self.random, self.flip = np.random.default_rng(seed), flip

    def __call__(self, _: Observation) -> Targets:
        sizes = self.random.integers(1, 7, 2)
        return Targets(int(sizes[0]), int(sizes[1]), flip=int(self.random.integers(-2, 3)) if self.flip else 0)


def day(seed: int = 0) -> Trace:
    """Return an hour and a half of a load that grows fivefold and comes back."""
    r = np.random.default_rng(seed)
    at = np.sort(r.uniform(0, 5400.0, 130_000))
    at = at[r.random(len(at)) < 0.2 + 0.8 * np.sin(np.pi * at / 5400) ** 2]
    return trace(at, r.integers(50, 2500, len(at)), r.integers(2, 500, len(at)))
