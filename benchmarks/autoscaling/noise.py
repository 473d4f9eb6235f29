"""Metrics as a bad network and a bad exporter deliver them.

A tenth of the scrapes is lost; counters are not, so the next scrape counts both intervals. In
another tenth, half of the values are NaN. All other values are off by up to 15 %, and one in
a thousand is fifty times too large.
"""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import numpy as np

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, PrefillSignals, Targets
from disagg_operator.simulation.cluster import Policy

_LOST, _WITH_NAN, _NAN = 0.1, 0.1, 0.5
_OFF, _OUTLIER, _OUTLIER_FACTOR = 0.15, 1e-3, 50.0
_GAUGES = {
    "waiting_requests", "waiting_tokens", "running_requests", "kv_tokens", "kv_capacity_tokens", "batch_share",
}  # fmt: skip
# What is counted of the same requests or steps at once is off by the same factor.
_TOGETHER = ("ttft_", "tpot_", "batch", "step", "complet")


class NoisyMetrics:
    """A policy that sees every observation of a cluster through such noise."""

    def __init__(self, policy: Policy, seed: int = 0) -> None:
        self.policy = policy
        self._random = np.random.default_rng(seed)
        self._unseen: Observation | None = None
        self._last: Targets | None = None

    def __call__(self, o: Observation) -> Targets:
        if self._unseen is not None:
            o = _both(self._unseen, o)
        self._unseen = None
        if self._last is not None and self._random.random() < _LOST:
            self._unseen = o
            return self._last
        nan = _NAN if self._random.random() < _WITH_NAN else 0.0
        noisy = replace(o, prefill=self._off(o.prefill, nan), decode=self._off(o.decode, nan))
        # The operator takes an observation without its essential signals for a blind one.
        p = noisy.prefill
        needed = (p.prompt_tokens, p.prompt_tokens_squared, noisy.decode.generated_tokens)
        if any(map(math.isnan, needed)):
            noisy = replace(noisy, prefill=replace(p, arrivals=math.nan))
        self._last = self.policy(noisy)
        return self._last

    def _off(self, signals: Any, nan: float) -> Any:
        factors: dict[str, float] = {}
        changed = {}
        for field in fields(signals):
            if field.name == "pods":
                continue
            group = next((name for name in _TOGETHER if field.name.startswith(name)), field.name)
            if group not in factors:
                factor = self._random.uniform(1 - _OFF, 1 + _OFF)
                factor *= _OUTLIER_FACTOR if self._random.random() < _OUTLIER else 1.0
                factors[group] = math.nan if self._random.random() < nan else factor
            changed[field.name] = getattr(signals, field.name) * factors[group]
        return replace(signals, **changed)


def _both(unseen: Observation, o: Observation) -> Observation:
    """Return the observation of two intervals."""
    return replace(
        o, interval_s=unseen.interval_s + o.interval_s,
        prefill=_summed(unseen.prefill, o.prefill), decode=_summed(unseen.decode, o.decode),
    )  # fmt: skip


def _summed(before: PrefillSignals | DecodeSignals, now: Any) -> Any:
    counts = {f.name for f in fields(now)} - _GAUGES - {"pods"}
    return replace(now, **{name: getattr(before, name) + getattr(now, name) for name in counts})
