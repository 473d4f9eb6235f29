"""The loads that are served and simulated."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np

from benchmarks.engine.vllm_process import NEWEST as VERSION
from disagg_operator.performance import profile as profiles
from disagg_operator.planning.traffic import log_normal
from disagg_operator.simulation.ordering import FIRST_COME, ORDERS
from disagg_operator.simulation.traces import Trace
from disagg_wire.engines import BUILTIN, VLLM

PROFILE_SECONDS = 50.0
"""The seconds of the measurement of a profile."""
TTFT_S = 1.0
"""The objective by which prompts are ordered: this time, or 5 times that of the prompt alone."""


@dataclass(frozen=True, slots=True)
class Load:
    """A load on the stack."""

    share: float
    """The share of the prefill worker's time that the prompts take; 0 for all requests at once."""
    prompt: tuple[float, float]
    """The mean and the 99th percentile of prompt lengths, in tokens."""
    output: tuple[float, float]
    """The mean and the 99th percentile of output lengths, in tokens."""
    seconds: float = 20.0
    """The seconds during which requests arrive."""
    requests: int = 0
    """The number of requests, or 0 for no limit."""
    order: str = FIRST_COME
    """The order of waiting prompts."""
    engine: str = BUILTIN
    """The engine of both workers."""


LOADS = {
    "chat 30 %": Load(0.3, (160, 400), (40, 120)),
    "chat 50 %": Load(0.5, (160, 400), (40, 120)),
    "chat 70 %": Load(0.7, (160, 400), (40, 120)),
    "chat 85 %": Load(0.85, (160, 400), (40, 120)),
    "long prompts 50 %": Load(0.5, (400, 800), (20, 60), seconds=30.0),
    "long answers 20 %": Load(0.2, (96, 240), (150, 400)),
    "all at once": Load(0.0, (160, 400), (40, 120), requests=60),
    **{f"chat 100 %, {order}": Load(1.0, (160, 400), (20, 60), seconds=60.0, order=order) for order in ORDERS},
    f"vLLM {VERSION} on the CPU, chat 50 %": Load(0.5, (160, 400), (40, 120), seconds=30.0, engine=VLLM),
}


def requests(load: Load, profile: profiles.Profile, seed: int) -> Trace:
    """Return Poisson arrivals with log-normal lengths, the same for the same seed.

    Prompts have 16 to 900 tokens, answers 2 to 900.
    """
    draw = random.Random(seed)
    kinds = [log_normal(*load.prompt, "prompt"), log_normal(*load.output, "output")]
    bounds = [(16, 900), (2, 900)]

    def length(i: int) -> int:
        return min(bounds[i][1], max(bounds[i][0], round(draw.lognormvariate(kinds[i].mu, kinds[i].sigma))))

    lengths = [(length(0), length(1)) for _ in range(5000)]
    mean_s = sum(profile.isolated_s(n) for n, _ in lengths) / len(lengths)
    found: list[tuple[float, int, int]] = []
    at = 0.0
    for n, m in lengths:
        if load.share:
            at += draw.expovariate(load.share / mean_s)
        if at > load.seconds or (load.requests and len(found) >= load.requests):
            break
        found.append((at, n, m))
    arrival, prompt, output = (np.array(column) for column in zip(*found, strict=True))
    return Trace(
        "validation",
        arrival.astype(float),
        prompt.astype(np.int64),
        np.zeros(len(found), np.int64),
        output.astype(np.int64),
    )
