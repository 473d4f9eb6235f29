"""Policies by their names, as the command line and the benchmark run them."""

from __future__ import annotations

import csv
import re
from dataclasses import replace
from pathlib import Path

from disagg_operator.autoscaling.policy import history, predictive
from disagg_operator.autoscaling.policy.observation import Observation, Targets
from disagg_operator.simulation import baselines
from disagg_operator.simulation.cluster import DECODE, PREFILL, Policy, Setup
from disagg_operator.simulation.traces import TraceError, text_file

PREDICTIVE = "predictive"


class PolicyError(ValueError):
    """Raised for a name that no policy has."""


class Predictive:
    """The predictive policy with its state; with `log` it keeps what it saw and answered."""

    def __init__(self, settings: predictive.Settings, state: predictive.State | None = None, log: bool = False) -> None:
        self.settings = settings
        self.state = state or predictive.State()
        self.log: list[tuple[Observation, Targets]] | None = [] if log else None

    def __call__(self, observation: Observation) -> Targets:
        targets, self.state = predictive.step(self.settings, observation, self.state)
        if self.log is not None:
            self.log.append((observation, targets))
        return targets


def settings_of(setup: Setup) -> predictive.Settings:
    """Return the predictive policy's settings for a simulated cluster.

    They are its bounds and objectives; everything else is as by default.
    """
    prefill, decode = (predictive.PoolLimits(setup.least(k), setup.most, setup.profile.gpus) for k in (PREFILL, DECODE))
    return predictive.Settings(setup.profile, setup.tpot_s, prefill, decode, gpu_budget=setup.max_gpus)


def names(setup: Setup) -> list[str]:
    """Return the names of all policies but fixed fleets."""
    return [PREDICTIVE, *baselines.all_of(setup.profile, setup.tpot_s)]


def make(name: str, setup: Setup, past: list[history.Minute] | None = None, flip_s: float | None = None) -> Policy:
    """Return a fresh policy; the predictive one may learn from the minutes of the `past`.

    Raises PolicyError.
    """
    if name == PREDICTIVE:
        settings = replace(settings_of(setup), role_flip_s=flip_s)
        return Predictive(settings, history.seed(settings, past) if past else None)
    if fixed := re.fullmatch(r"static:(?P<prefill>\d+),(?P<decode>\d+)", name):
        sizes = Targets(int(fixed["prefill"]), int(fixed["decode"]))
        for kind, role, n in ((PREFILL, "prefill", sizes.prefill), (DECODE, "decode", sizes.decode)):
            if not setup.least(kind) <= n <= setup.most:
                raise PolicyError(f"policy: {name}: {role} has {setup.least(kind)} to {setup.most} workers")
        return lambda _: sizes
    known = baselines.all_of(setup.profile, setup.tpot_s)
    if name not in known:
        raise PolicyError(f"policy: {name!r} is none of predictive, static:PREFILL,DECODE, {', '.join(known)}")
    return known[name]


def read_history(path: Path, copies: int = 1) -> list[history.Minute]:
    """Return the minutes before a trace, from a CSV file.

    Its columns are minute (-1 ends where the trace begins), requests, prompt_tokens, output_tokens.
    Raises TraceError.
    """
    found = []
    with text_file(path) as file:
        for row in (rows := csv.DictReader(file)):
            try:
                values = [float(row[c]) for c in ("minute", "requests", "prompt_tokens", "output_tokens")]
            except (KeyError, TypeError, ValueError) as error:
                raise TraceError(f"{path}:{rows.line_num}: {error}") from None
            found.append(history.Minute((values[0] + 1) * 60.0, *values[1:]).times(copies))
    return found
