"""The inputs of plans that several tests use."""

from __future__ import annotations

from typing import Any

from disagg_operator.performance.expert_profile import ExpertProfile
from disagg_operator.performance.hardware import GPUS, NETWORKS
from disagg_operator.performance.model_shape import KNOWN
from disagg_operator.performance.roof_line import Efficiency, estimate
from disagg_operator.planning.deployment_plan import Question
from disagg_operator.planning.traffic import LatencyObjectives, Traffic, log_normal


def traffic(
    rate: float = 50.0, prompt: tuple[float, float] = (1000, 4000), output: tuple[float, float] = (250, 800)
) -> Traffic:
    return Traffic(rate, log_normal(*prompt, "prompt").lengths(0.99), log_normal(*output, "output").lengths(0.99))


def question(
    model: str = "llama-3.1-70b",
    gpus: str = "H100",
    network: str = "rdma-400",
    ttft_s: float = 2.0,
    tpot_s: float = 0.05,
    **other: Any,
) -> Question:
    asked = other.pop("traffic", None) or traffic()
    return Question(
        KNOWN[model],
        asked,
        LatencyObjectives(ttft_s, tpot_s),
        tuple(GPUS[g] for g in gpus.split(",")),
        NETWORKS[network],
        **other,
    )


def estimated(
    name: str, gpu: str = "H200", tensor: int = 8, held: float = 1024.0, bits: int | None = None
) -> ExpertProfile:
    found = estimate(KNOWN[name].at_bits(bits, 16), GPUS[gpu], tensor, Efficiency(), held)
    assert isinstance(found, ExpertProfile)
    return found
