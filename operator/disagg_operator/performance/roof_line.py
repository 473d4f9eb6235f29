"""PURE: how long a prefill and a decode step take on so many GPUs: the roof line, with an
efficiency and an overhead that are stated.

The form is that of measured profiles (planning.profile): a prefill batch takes a + b * sum(n) + c *
sum(n^2) seconds for prompts of n tokens, a decode step d + e * B + f * K for B sequences that hold
K tokens. A measured profile replaces the estimate.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from disagg_operator.performance.expert_profile import ExpertProfile
from disagg_operator.performance.hardware import Gpu
from disagg_operator.performance.model_shape import ModelShape
from disagg_operator.performance.profile import Profile

_PCIE_BYTES_PER_S = 25e9
_RESERVED_BYTES = 1.5e9  # of each GPU: context, workspace, graphs
_MAX_RUNNING = 512


@dataclass(frozen=True, slots=True)
class Efficiency:
    """What is reached of the maker's figures: shares of dense FLOP/s (matrices, attention) and of
    bandwidth; the share of memory that may be used; what a layer costs beside its arithmetic, and
    one hop of an all-reduce. Of experts: the share of FLOP/s that their many small matrices reach,
    and what choosing them, sorting the tokens and adding up costs a layer, fitted to gpt-oss-120b
    on H100.
    """

    prefill_flops: float = 0.55
    attention_flops: float = 0.40
    decode_bandwidth: float = 0.70
    memory: float = 0.90
    layer_overhead_s: float = 4e-6
    reduce_latency_s: float = 8e-6
    experts_flops: float = 0.30
    experts_overhead_s: float = 40e-6


# tuned: engines of today with CUDA graphs and fused attention. eager: as measured in 2023
# (docs/planning.md compares both with published measurements).
EFFICIENCIES = {"tuned": Efficiency(), "eager": Efficiency(attention_flops=0.10, layer_overhead_s=180e-6)}


def estimate(
    model: ModelShape,
    gpu: Gpu,
    tensor: int,
    efficiency: Efficiency,
    sequence_tokens: float = 1024.0,
    spread: bool = False,
) -> Profile | None:
    """The profile of a replica of `tensor` GPUs of one node; None where weights and a useful cache
    do not fit. `sequence_tokens`: what a sequence holds, which matters only to layers with a
    window. `spread`: only the routed experts are spread over the GPUs; each GPU has the other
    weights whole and computes attention for sequences of its own.
    """
    copies = tensor if spread else 1
    base_bytes = copies * (model.weight_bytes - model.routed_bytes)
    memory_bytes = gpu.memory_bytes * efficiency.memory * tensor
    room_bytes = memory_bytes - base_bytes - model.routed_bytes - _RESERVED_BYTES * tensor
    if room_bytes < 0.05 * memory_bytes:
        return None
    bandwidth = gpu.bandwidth_bytes_per_s * tensor * efficiency.decode_bandwidth
    attention_flops = gpu.bf16_flops * tensor * efficiency.attention_flops
    base_s, routed_s = _matrices_s_per_token(model, gpu, tensor, efficiency)
    # Two all-reduces a layer, each moves 2 * (t-1)/t of the activations over the link. To send
    # tokens to experts and back is no more.
    link = gpu.link_bytes_per_s or _PCIE_BYTES_PER_S
    reduce_s = 0.0 if tensor == 1 else 2 * model.layers * 2 * (tensor - 1) / tensor * model.hidden * 2 / (0.7 * link)
    # More GPUs than KV heads: some hold the same head, and its cache, twice; all of them hold a
    # latent cache.
    kv_bytes = (
        model.kv_bytes(sequence_tokens) / sequence_tokens * (1.0 if spread else max(1.0, tensor / model.kv_heads))
    )
    hops_s = 2 * efficiency.reduce_latency_s * math.log2(tensor) if tensor > 1 else 0.0
    fixed_s = model.layers * (efficiency.layer_overhead_s + hops_s)
    choosing_s = model.experts.layers * efficiency.experts_overhead_s if model.experts is not None else 0.0
    # Layers whose window a sequence does not fill attend as the others do, the rest to a window for
    # each token.
    w = model.window if model.window is not None and model.window.tokens < sequence_tokens else None
    windowed, pair_s = (w.layers / model.layers if w else 0.0), model.pair_flops / attention_flops
    linear = Profile(
        gpus=tensor,
        a_s=fixed_s + 5e-3,
        b_s_per_token=base_s + routed_s + reduce_s + (windowed * w.tokens * pair_s if w else 0.0),
        c_s_per_token2=(1 - windowed) * pair_s / 2,
        d_s=base_bytes / bandwidth + fixed_s + choosing_s,
        e_s_per_sequence=base_s + routed_s + reduce_s + 10e-6,
        # A latent cache is read by every rank for its heads: with few ranks the arithmetic takes
        # longer than the reading.
        f_s_per_token=max(kv_bytes / bandwidth, (1 - windowed) * model.decode_pair_flops / attention_flops),
        kv_tokens=int(room_bytes / kv_bytes),
        max_running=_MAX_RUNNING * copies,
    )
    e, read_s = model.experts, model.routed_bytes / bandwidth
    if e is None or e.share >= 1:  # or every token takes all
        return replace(linear, d_s=linear.d_s + read_s)
    given = {f.name: getattr(linear, f.name) for f in fields(Profile)} | {"d_s": linear.d_s + read_s}
    exact = ExpertProfile(
        **given, routed_s=read_s, share=e.share, weights_s=base_bytes / bandwidth + choosing_s, matrix_s_per_token=base_s + routed_s,
        ranks=copies, own_s_per_token=base_s,
    )  # fmt: skip
    return exact.around(_MAX_RUNNING / 2)


def _matrices_s_per_token(model: ModelShape, gpu: Gpu, tensor: int, efficiency: Efficiency) -> tuple[float, float]:
    """Of what all tokens are multiplied with, and of their routed experts.

    Weights of 4 bits are multiplied at 16; of 8 bits at 8 where the GPU can.
    """

    def flops(bits: float) -> float:
        return tensor * (gpu.fp8_flops if bits == 8 and gpu.fp8_flops else gpu.bf16_flops)

    routed = model.active_parameters - model.base_parameters
    base_s = 2 * model.base_parameters / (flops(model.weight_bits) * efficiency.prefill_flops)
    return base_s, 2 * routed / (flops(model.routed_bits) * efficiency.experts_flops)


def estimates(model: ModelShape, gpu: Gpu, efficiency: Efficiency, sequence_tokens: float = 1024.0) -> list[Profile]:
    """Every tensor parallelism that the GPU and the model's heads allow, and experts spread over as
    many GPUs.
    """
    found = []
    tensor = 1
    while (
        tensor <= gpu.max_tensor
        and model.heads % tensor == 0
        and max(model.kv_heads, tensor) % min(model.kv_heads, tensor) == 0
    ):
        spreads = tensor > 1 and model.experts is not None and model.experts.count % tensor == 0
        for spread in (True, False) if spreads else (False,):
            if (profile := estimate(model, gpu, tensor, efficiency, sequence_tokens, spread)) is not None:
                found.append(profile)
        tensor *= 2
    return found
