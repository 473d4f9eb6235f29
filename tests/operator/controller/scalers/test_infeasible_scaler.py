"""A DisaggScaler whose objectives cannot be met says so, and has the size for what can be."""

from __future__ import annotations

from typing import Any

import pytest
from tests.fakes.engine_fleet import EngineFleet
from tests.operator.autoscaling.signals.test_engine_fold import told
from tests.operator.controller.scalers.scalers import scaler_object

from disagg_operator.api.namespace_policy import NamespacePolicy
from disagg_operator.autoscaling import chosen_policy
from disagg_operator.autoscaling.chosen_policy import PolicyMemory
from disagg_operator.autoscaling.policy.observation import Pods
from disagg_operator.autoscaling.signals.engine_fold import EngineLook, EngineMemory, EngineReport, observe_engines
from disagg_operator.controller.scalers.scaler_settings import scaler_plan
from disagg_operator.controller.scalers.scaler_status import PoolFound, ScalerFindings, scaler_status
from disagg_operator.vocabulary import Obj
from disagg_wire.roles import ROLES

# The speed of the fleet: 10 prompts a second and a pod, steps of 30 ms, 64 sequences.
SPEED = {
    "prefill": {"base": 0.0, "perToken": 0.1e-3, "perToken2": 0.0},
    "decode": {"base": 0.029, "perSequence": 0.02e-3, "perKvToken": 0.0, "kvTokens": 400_000},
}


def pool(name: str, most: int) -> Obj:
    return {"scaleTargetRef": {"name": name}, "maxReplicas": most, "gpus": 2}


def run(rate: float, minutes: int, most: int = 12, tpot_s: float = 0.06, **scaling: Any) -> tuple[Obj, dict[str, int]]:
    """Scale a fleet, and return the status and the sizes of its pools."""
    objectives = {"ttftSeconds": {"p99": 1}, "tpotSeconds": {"p99": tpot_s}}
    obj = scaler_object(
        mode="Active", objectives=objectives, prefill=pool("p", most), decode=pool("d", most),
        scaling={"profile": SPEED, **scaling},
    )  # fmt: skip
    plan = scaler_plan(obj, NamespacePolicy()).scaling
    fleet, engines, memory = EngineFleet(), EngineMemory(), PolicyMemory()
    for role in ROLES:
        fleet.add(role, f"{role}-0", f"{role}-1")
    status: Obj = {}
    for i in range(minutes * 4):
        fleet.advance(15, rate, step_s=5.0)
        first, second = (
            {n: EngineReport(fleet.now_s, told(p)) for n, p in fleet.pods[role].items()}
            for role in ("prefill", "decode")
        )
        pods = [Pods(len(fleet.pods[role]), len(fleet.pods[role]), cold_start_s=15.0) for role in ("prefill", "decode")]
        look = EngineLook(fleet.now_s, first, second, pods[0], pods[1], 1.0, tpot_s)
        seen, engines = observe_engines(look, engines, polled=False)
        outcome, memory = chosen_policy.step(plan, seen, memory)
        decisions = {} if outcome is None else outcome.decisions
        pools = {r: PoolFound(len(p), len(p), None, decisions.get(r), True) for r, p in fleet.pods.items()}
        status = scaler_status(ScalerFindings(True, pools=pools), status, 1, "t")
        for role, decision in decisions.items():
            held = fleet.pods[role]
            while len(held) > decision.to:
                held.pop(next(reversed(held)))
            fleet.add(role, *(f"{role}-{i}-{n}" for n in range(decision.to - len(held))))
    return status, {role: len(held) for role, held in fleet.pods.items()}


def verdict(status: Obj) -> tuple[str, str, str]:
    found = next(c for c in status["conditions"] if c["type"] == "ObjectivesFeasible")
    return found["status"], found["reason"], found["message"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"most": 3}, "at most 3 workers are allowed"),
        ({"maxGPUs": 10}, "of it"),
        ({"most": 4, "ratio": {"min": 2, "max": 3}}, "prefill"),
        ({"tpot_s": 0.01}, "0.01 s per token can't be met: a step with a single sequence takes 0.02"),
    ],
    ids=["maxReplicas", "maxGPUs", "ratio", "the speed of a worker"],
)
def test_what_cannot_be_met_is_said_with_what_can(given: dict[str, Any], words: str) -> None:
    """60 requests a second need some 6 prefill and 6 decode pods."""
    status, sizes = run(60.0, 12, **given)
    state, reason, message = verdict(status)
    assert (state, reason) == ("False", "ObjectivesInfeasible")
    assert words in message
    # The size is for what can be met: all that is allowed, but no more than helps.
    if "tpot_s" in given:
        assert 5 <= sizes["decode"] <= 10
    else:
        assert 2 * sum(sizes.values()) <= given.get("maxGPUs", 48)
        assert sum(sizes.values()) >= 4
    assert next(c for c in status["conditions"] if c["type"] == "Ready")["reason"] == "Scaling"


def test_what_can_be_met_is_within_reach() -> None:
    status, sizes = run(20.0, 12)
    assert verdict(status)[:2] == ("True", "WithinReach")
    assert max(sizes.values()) <= 6
