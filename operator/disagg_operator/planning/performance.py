"""PURE: how long a prefill and a decode step take on so many GPUs: the roof line, with an efficiency and an overhead that are stated.

The form is that of measured profiles (planning.profile): a prefill batch takes a + b * sum(n) + c * sum(n^2) seconds for prompts of n
tokens, a decode step d + e * B + f * K for B sequences that hold K tokens. A measured profile replaces the estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from disagg_operator.planning.hardware import Gpu
from disagg_operator.planning.model_shape import ModelShape
from disagg_operator.planning.profile import Profile

_PCIE_BYTES_PER_S = 25e9
_RESERVED_BYTES = 1.5e9  # of each GPU: context, workspace, graphs
_MAX_RUNNING = 512


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What is reached of the maker's figures: shares of dense FLOP/s (matrices, attention) and of bandwidth; the share of memory that may
    be used; what a layer costs beside its arithmetic, and one hop of an all-reduce."""

    prefill_flops: float = 0.55
    attention_flops: float = 0.40
    decode_bandwidth: float = 0.70
    memory: float = 0.90
    layer_overhead_s: float = 4e-6
    reduce_latency_s: float = 8e-6


# tuned: engines of today with CUDA graphs and fused attention. eager: as measured in 2023 (docs/planning.md compares both with published
# measurements).
EFFICIENCIES = {"tuned": Efficiency(), "eager": Efficiency(attention_flops=0.10, layer_overhead_s=180e-6)}


def estimate(model: ModelShape, gpu: Gpu, tensor: int, efficiency: Efficiency) -> Profile | None:
    """The profile of a replica of `tensor` GPUs; None where weights and a useful cache do not fit."""
    memory_bytes = gpu.memory_bytes * efficiency.memory * tensor
    room_bytes = memory_bytes - model.weight_bytes - _RESERVED_BYTES * tensor
    if room_bytes < 0.05 * memory_bytes:
        return None
    # Weights of 4 bits are multiplied at 16; of 8 bits at 8 where the GPU can.
    flops = gpu.fp8_flops if model.weight_bits == 8 and gpu.fp8_flops else gpu.bf16_flops
    matrix_flops = flops * tensor * efficiency.prefill_flops
    bandwidth = gpu.bandwidth_bytes_per_s * tensor * efficiency.decode_bandwidth
    # Two all-reduces a layer, each moves 2 * (t-1)/t of the activations over the link.
    link = gpu.link_bytes_per_s or _PCIE_BYTES_PER_S
    reduce_s_per_token = 0.0 if tensor == 1 else 2 * model.layers * 2 * (tensor - 1) / tensor * model.hidden * 2 / (0.7 * link)
    # More GPUs than KV heads: some hold the same head, and its cache, twice.
    kv_bytes = model.kv_bytes_per_token * max(1.0, tensor / model.kv_heads)
    fixed_s = model.layers * (efficiency.layer_overhead_s + (2 * efficiency.reduce_latency_s * math.log2(tensor) if tensor > 1 else 0.0))
    return Profile(
        gpus=tensor,
        a_s=fixed_s + 5e-3,
        b_s_per_token=model.token_flops / matrix_flops + reduce_s_per_token,
        c_s_per_token2=model.pair_flops / 2 / (gpu.bf16_flops * tensor * efficiency.attention_flops),
        d_s=model.weight_bytes / bandwidth + fixed_s,
        e_s_per_sequence=model.token_flops / matrix_flops + reduce_s_per_token + 10e-6,
        f_s_per_token=kv_bytes / bandwidth,
        kv_tokens=int(room_bytes / kv_bytes),
        max_running=_MAX_RUNNING,
    )


def estimates(model: ModelShape, gpu: Gpu, efficiency: Efficiency) -> list[Profile]:
    """Every tensor parallelism that the GPU and the model's heads allow."""
    found = []
    tensor = 1
    while tensor <= gpu.max_tensor and model.heads % tensor == 0 and max(model.kv_heads, tensor) % min(model.kv_heads, tensor) == 0:
        if (profile := estimate(model, gpu, tensor, efficiency)) is not None:
            found.append(profile)
        tensor *= 2
    return found
