"""Looks at a deployment, and the outcomes of the predictive policy with its safeguards."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from disagg_operator.autoscaling.policy import guard
from disagg_operator.autoscaling.policy.decision import PoolRules
from disagg_operator.autoscaling.policy.guard import Predicting
from disagg_operator.autoscaling.policy.observation import DecodeSignals, Folded, Observation, Pods, PrefillSignals
from disagg_operator.autoscaling.policy.predictive import PoolLimits, Settings
from disagg_operator.performance.profile import PROFILES

SETTINGS = Settings(PROFILES["8b-h100"], 0.06, PoolLimits(1, 10), PoolLimits(1, 10))
POOLS = {"prefill": PoolRules(1, 10, 4.0), "decode": PoolRules(1, 10, 32.0)}
T0 = 1_700_000_000.0


def observation(at_s: float, prefill: int = 2, decode: int = 2, per_s: float = 5.0) -> Observation:
    n = per_s * 5
    return Observation(
        T0 + at_s, 5.0,
        PrefillSignals(Pods(prefill, prefill), n, 1000 * n, 1.5e6 * n, 0.0, 0.0, 1.0, 1.0, n, n),
        DecodeSignals(Pods(decode, decode), 0.0, 20.0, 20_000.0, 400_000.0, 200 * n, n, 200 * n, 1100 * n, n, n),
    )  # fmt: skip


def blind(at_s: float, **sizes: int) -> Observation:
    o = observation(at_s, **sizes)
    return replace(o, prefill=PrefillSignals(o.prefill.pods), decode=DecodeSignals(o.decode.pods))


def run(*looks: Observation | Folded, pools: Any = None, windows: Any = None) -> list[guard.Outcome | None]:
    memory, out = Predicting(), []
    for one in looks:
        folded = one if isinstance(one, Folded) else Folded(one, frozenset())
        outcome, memory = guard.step(SETTINGS, pools or POOLS, windows or {}, folded, memory)
        out.append(outcome)
    return out
