"""PURE: One recorded decision in words: for each pool what it needs, what it has, and why."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from disagg_operator.autoscaling.policy.decision import (
    CLUSTER_CAPACITY,
    GPU_BUDGET,
    MAX_REPLICAS,
    METRICS_UNAVAILABLE,
    MIN_REPLICAS,
    RATIO,
    STABILIZING,
)
from disagg_operator.autoscaling.policy.guard import PARTIAL_METRICS, reason_of
from disagg_operator.autoscaling.policy.predictive import Settings
from disagg_operator.autoscaling.records.decision_records import Step
from disagg_wire.roles import ROLES, other_role

_WHY = {
    METRICS_UNAVAILABLE: "metrics are missing, and nothing is scaled down without them",
    PARTIAL_METRICS: "some pods did not answer, and their load is not known",
    STABILIZING: "scaling down waits for its window",
}
Lines = list[tuple[str, str]]
"""What is told of a pool: (word, sentence)."""


def of_step(step: Step, settings: Settings) -> dict[str, Lines]:
    """Return what a decision says of each pool that was scaled."""
    return {pool: _pool(step, settings, pool) for pool in ROLES if pool in step.decided}


def _pool(step: Step, settings: Settings, pool: str) -> Lines:
    numbers = {
        name.removeprefix(f"{pool}_"): value
        for name, value in step.targets.numbers.items()
        if name.startswith(f"{pool}_") and math.isfinite(value)
    }
    told = (
        ("needs", _needs(numbers)),
        ("has", _has(step, pool)),
        ("does", _does(step, pool)),
        ("limit", _limit(step, settings, pool)),
        ("shares", _shares(step, settings, pool)),
        ("price", _price(numbers)),
        ("objective", step.targets.unmet.get(pool, "")),
    )
    return [(word, sentence) for word, sentence in told if sentence]


def _needs(numbers: Mapping[str, float]) -> str:
    if "requests_per_worker" in numbers:
        return f"{numbers['target']:.3g} requests a worker, and there are {numbers['requests_per_worker']:.3g}"
    if "forecast" not in numbers:
        return ""
    out = f"{_workers(numbers['best'])}: {numbers['demand']:.2f} of work now, {numbers['forecast']:.2f} expected in "
    out += f"{numbers['horizon_s']:.0f} s"
    if "error_high" in numbers:
        out += f" (9 of 10 forecasts were off by a factor of {numbers['error_low']:.2f} to {numbers['error_high']:.2f})"
    return out + (f", and {numbers['backlog']:.0f} s of one worker's work that waits" if numbers["backlog"] > 1 else "")


def _has(step: Step, pool: str) -> str:
    pods = step.observation.pods(pool)
    out = f"{pods.ready} ready of {pods.replicas}"
    if pods.starting_ages_s:
        out += f", {len(pods.starting_ages_s)} starting, the oldest for {max(pods.starting_ages_s):.0f} s"
    return out + (f", {len(pods.unplaced_s)} without a node" if pods.unplaced_s else "")


def _does(step: Step, pool: str) -> str:
    now, to = step.observation.pods(pool).replicas, step.decided[pool]
    out = f"{'stays at' if to == now else f'goes from {now} to'} {to} ({step.reasons.get(pool, '')})"
    why = _WHY.get(step.reasons.get(pool, "")) or reason_of(step.targets.reason, pool)
    return f"{out}: {why}" if why else out


def _limit(step: Step, settings: Settings, pool: str) -> str:
    limit, bounds = step.targets.limits.get(pool, ""), settings.limits(pool)
    words: dict[str, Callable[[], str]] = {
        MIN_REPLICAS: lambda: f"{bounds.least} to {bounds.most} workers",
        MAX_REPLICAS: lambda: f"{bounds.least} to {bounds.most} workers",
        GPU_BUDGET: lambda: f"{settings.gpu_budget} GPUs for both pools",
        RATIO: lambda: "from {:g} to {:g} decode workers for each prefill worker".format(*(settings.ratio or (0, 0))),
        CLUSTER_CAPACITY: lambda: "there is no node for more",
    }
    return f"{limit}: {words[limit]()}" if limit in words else ""


def _shares(step: Step, settings: Settings, pool: str) -> str:
    """Return what the limits of both pools leave to one of them, and what to the other one."""
    asked, got = step.targets.numbers.get(f"{pool}_asked"), step.decided[pool]
    if asked is None or asked == got or step.targets.limits.get(pool) not in (GPU_BUDGET, RATIO, CLUSTER_CAPACITY):
        return ""
    other = other_role(pool)
    rest = step.decided.get(other, step.observation.pods(other).replicas)
    out = f"asks for {asked:.0f} and gets {got}; {other} gets {rest}"
    if settings.gpu_budget is not None:
        used = sum(n * settings.limits(p).gpus for p, n in ((pool, got), (other, rest)))
        out += f"; {used:g} of {settings.gpu_budget} GPUs are used"
    return out


def _price(numbers: Mapping[str, float]) -> str:
    if "price" not in numbers:
        return ""
    out = f"missing all objectives of a worker's work costs as much as {numbers['price']:.3g} workers"
    if "expected_misses" in numbers:
        out += f"; {numbers['expected_misses']:.2%} are expected to miss"
    return out + (f", {numbers['missed_share']:.2%} have lately" if "missed_share" in numbers else "")


def _workers(n: float) -> str:
    return "1 worker" if n == 1 else f"{n:.0f} workers"
