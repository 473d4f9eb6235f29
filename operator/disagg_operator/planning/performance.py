"""PURE: how long a prefill and a decode step take on so many GPUs: the roof line, with an efficiency and an overhead that are stated.

The form is the one that measurements are fitted to: a prefill batch takes a + b * sum(n) + c * sum(n^2) seconds for prompts of n tokens, a
decode step d + e * B + f * K for B sequences that hold K tokens of KV. A measured profile of the same form replaces the estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from disagg_operator.planning.hardware import Gpu
from disagg_operator.planning.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What is reached of the maker's figures. The defaults lie at what well-tuned engines report (docs/planning.md compares them)."""

    prefill_flops: float = 0.55
    decode_bandwidth: float = 0.70
    memory: float = 0.90
    layer_overhead_s: float = 4e-6
    reduce_latency_s: float = 8e-6


@dataclass(frozen=True, slots=True)
class Profile:
    """Times of one replica. Units: a, d s; b s/token; c s/token^2; e s/sequence; f s/token of KV; kv_tokens: room in the cache."""

    gpus: int
    a_s: float
    b_s: float
    c_s: float
    d_s: float
    e_s: float
    f_s: float
    kv_tokens: float

    def prefill_s(self, tokens: float) -> float:
        """One prompt alone."""
        return self.a_s + self.b_s * tokens + self.c_s * tokens**2

    def step_s(self, sequences: float, kv_tokens: float) -> float:
        """One decode step."""
        return self.d_s + self.e_s * sequences + self.f_s * kv_tokens


def estimate(model: ModelShape, gpu: Gpu, tensor: int, efficiency: Efficiency) -> Profile | None:
    """The profile of a replica of `tensor` GPUs; None where weights and a useful cache do not fit."""
    memory_bytes = gpu.memory_bytes * efficiency.memory * tensor
    room_bytes = memory_bytes - model.weight_bytes - 1.5e9 * tensor
    if room_bytes < 0.05 * memory_bytes:
        return None
    flops = gpu.bf16_flops * tensor * efficiency.prefill_flops
    bandwidth = gpu.bandwidth_bytes_per_s * tensor * efficiency.decode_bandwidth
    # Two all-reduces a layer, each moves 2 * (t-1)/t of the activations over the link; PCIe at 25 GB/s where there is no link.
    link = gpu.link_bytes_per_s or 25e9
    reduce_s_per_token = 0.0 if tensor == 1 else 2 * model.layers * 2 * (tensor - 1) / tensor * model.hidden * 2 / (0.7 * link)
    fixed_s = model.layers * (efficiency.layer_overhead_s + (2 * efficiency.reduce_latency_s * math.log2(tensor) if tensor > 1 else 0.0))
    return Profile(
        gpus=tensor,
        a_s=fixed_s + 5e-3,
        b_s=model.token_flops / flops + reduce_s_per_token,
        c_s=model.pair_flops / 2 / flops,
        d_s=model.weight_bytes / bandwidth + fixed_s,
        e_s=model.token_flops / flops + reduce_s_per_token + 10e-6,
        f_s=model.kv_bytes_per_token / bandwidth,
        kv_tokens=room_bytes / model.kv_bytes_per_token,
    )
