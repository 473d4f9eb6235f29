"""PURE: The roof line: an estimate of the prefill and decode times of a model on GPUs.

It is based on stated efficiencies and overheads. The estimate has the form of a measured profile
(performance.profile), which can replace it: a prefill batch takes a + b * sum(n) + c * sum(n^2)
seconds for prompts of n tokens, and a decode step takes d + e * B + f * K for B sequences that hold
K tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace

from disagg_operator.performance.expert_profile import ExpertProfile
from disagg_operator.performance.hardware import Gpu
from disagg_operator.performance.model_shape import ModelShape
from disagg_operator.performance.profile import Profile

_PCIE_BYTES_PER_S = 25e9
_RESERVED_BYTES = 1.5e9  # on each GPU, for its context, workspace and graphs
_MAX_RUNNING = 512
# What batches add to a step by multiplying, as a share of the square of that time over that of
# reading the weights: the two overlap, and are equal where both together take 1.26 times as long.
_OVERLAP = 0.26


@dataclass(frozen=True, slots=True)
class Efficiency:
    """The shares of the maker's figures that an engine reaches, and its overheads.

    The figures for experts are fitted to gpt-oss-120b on H100.
    """

    prefill_flops: float = 0.78
    """The share of the dense FLOP/s that matrices reach in prefill in 16 bits."""
    prefill_fp8_flops: float = 0.55
    """The share of the dense FLOP/s that matrices reach in prefill in FP8."""
    attention_flops: float = 0.40
    """The share of the dense FLOP/s that attention reaches."""
    decode_bandwidth: float = 0.80
    """The share of the memory bandwidth that reading weights and KV reaches."""
    memory: float = 0.90
    """The share of the memory that may be used."""
    layer_overhead_s: float = 20e-6
    """The seconds of a layer in addition to its arithmetic."""
    reduce_latency_s: float = 6e-6
    """The seconds of one hop of an all-reduce."""
    batch_overhead_s: float = 3e-3
    """The seconds of a prefill batch in addition to its layers."""
    sequence_overhead_s: float = 5e-6
    """The seconds of a sequence in a decode step in addition to its arithmetic."""
    norm_passes: float = 8.0
    """How often a layer reads or writes the hidden state of a token to normalise it."""
    overlap: bool = True
    """Whether a decode step multiplies while it reads the weights of dense layers."""
    experts_flops: float = 0.30
    """The share of the dense FLOP/s that the many small matrices of experts reach."""
    experts_overhead_s: float = 40e-6
    """The seconds of a layer to choose experts, sort the tokens and add up the results."""


# tuned: a current engine with CUDA graphs and fused attention. eager: as measured in 2023.
# docs/planning.md compares both with published measurements.
EFFICIENCIES = {
    "tuned": Efficiency(),
    "eager": Efficiency(
        prefill_flops=0.55, attention_flops=0.10, decode_bandwidth=0.70, layer_overhead_s=180e-6,
        reduce_latency_s=8e-6, batch_overhead_s=5e-3, sequence_overhead_s=10e-6, norm_passes=0.0, overlap=False,
    ),
}  # fmt: skip


def estimate(
    model: ModelShape,
    gpu: Gpu,
    tensor: int,
    efficiency: Efficiency,
    sequence_tokens: float = 1024.0,
    spread: bool = False,
) -> Profile | None:
    """Return the profile of a replica of `tensor` GPUs of one node.

    Returns None if the weights and a useful cache do not fit. `sequence_tokens` is the number of
    tokens that a sequence holds, which only matters to layers with a window. With `spread`, only
    the routed experts are distributed over the GPUs; each GPU holds all other weights and computes
    attention for its own sequences.
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
    beside_s, fixed_s = _layers_s(model, gpu, tensor, efficiency)
    # If there are more GPUs than KV heads, several GPUs hold the same head and its cache. A latent
    # cache is held by all of them.
    kv_bytes = (
        model.kv_bytes(sequence_tokens) / sequence_tokens * (1.0 if spread else max(1.0, tensor / model.kv_heads))
    )
    choosing_s = model.experts.layers * efficiency.experts_overhead_s if model.experts is not None else 0.0
    # Layers whose window is longer than a sequence attend like layers without one; the others
    # attend to a full window for each token.
    w = model.window if model.window is not None and model.window.tokens < sequence_tokens else None
    windowed, pair_s = (w.layers / model.layers if w else 0.0), model.pair_flops / attention_flops
    linear = Profile(
        gpus=tensor,
        a_s=fixed_s + efficiency.batch_overhead_s,
        b_s_per_token=base_s + routed_s + beside_s + (windowed * w.tokens * pair_s if w else 0.0),
        c_s_per_token2=(1 - windowed) * pair_s / 2,
        d_s=base_bytes / bandwidth + fixed_s + choosing_s,
        e_s_per_sequence=base_s + routed_s + beside_s + efficiency.sequence_overhead_s,
        # Every rank reads a latent cache for its own heads; with few ranks the arithmetic takes
        # longer than the reading.
        f_s_per_token=max(kv_bytes / bandwidth, (1 - windowed) * model.decode_pair_flops / attention_flops),
        kv_tokens=int(room_bytes / kv_bytes),
        max_running=_MAX_RUNNING * copies,
    )
    e, read_s = model.experts, model.routed_bytes / bandwidth
    if e is None or e.share >= 1:  # no experts, or every token uses all of them
        found = replace(linear, d_s=linear.d_s + read_s)
        return _overlapped(found, base_s + routed_s, base_bytes / bandwidth + read_s) if efficiency.overlap else found
    given = {f.name: getattr(linear, f.name) for f in fields(Profile)} | {"d_s": linear.d_s + read_s}
    exact = ExpertProfile(
        **given, routed_s=read_s, share=e.share, weights_s=base_bytes / bandwidth + choosing_s,
        matrix_s_per_token=base_s + routed_s, ranks=copies, own_s_per_token=base_s,
    )  # fmt: skip
    return exact.around(_MAX_RUNNING / 2)


def _overlapped(profile: Profile, matrices_s: float, reading_s: float) -> Profile:
    """Return the profile of a worker that multiplies while it reads the weights.

    `matrices_s` is the time to multiply a token by the weights, `reading_s` that to read them.
    """
    return replace(
        profile,
        e_s_per_sequence=profile.e_s_per_sequence - matrices_s,
        h_s_per_sequence2=_OVERLAP * matrices_s**2 / reading_s,
    )


def _layers_s(model: ModelShape, gpu: Gpu, tensor: int, efficiency: Efficiency) -> tuple[float, float]:
    """Return the seconds per token beside the matrices, and the seconds per step of the overheads.

    Both are for all layers.
    """
    # A layer has two all-reduces, each of which moves 2 * (t-1)/t of the activations over the link.
    # Sending tokens to experts and back takes no longer.
    link = gpu.link_bytes_per_s or _PCIE_BYTES_PER_S
    reduce_s = 0.0 if tensor == 1 else 2 * model.layers * 2 * (tensor - 1) / tensor * model.hidden * 2 / (0.7 * link)
    hops_s = 2 * efficiency.reduce_latency_s * math.log2(tensor) if tensor > 1 else 0.0
    # Each GPU normalises whole tokens, however many share the model.
    passes_bytes = model.layers * efficiency.norm_passes * model.hidden * 2
    norms_s = passes_bytes / (gpu.bandwidth_bytes_per_s * efficiency.decode_bandwidth)
    return reduce_s + norms_s, model.layers * (efficiency.layer_overhead_s + hops_s)


def _matrices_s_per_token(model: ModelShape, gpu: Gpu, tensor: int, efficiency: Efficiency) -> tuple[float, float]:
    """Return the seconds per token to multiply by the weights that all tokens need and by experts.

    Weights of 4 bits are multiplied as 16 bits; weights of 8 bits as 8 bits if the GPU can.
    """

    def flops(bits: float) -> float:
        return tensor * (gpu.fp8_flops if bits == 8 and gpu.fp8_flops else gpu.bf16_flops)

    narrow = model.weight_bits == 8 and gpu.fp8_flops
    share = efficiency.prefill_fp8_flops if narrow else efficiency.prefill_flops

    routed = model.active_parameters - model.base_parameters
    base_s = 2 * model.base_parameters / (flops(model.weight_bits) * share)
    return base_s, 2 * routed / (flops(model.routed_bits) * efficiency.experts_flops)


def estimates(model: ModelShape, gpu: Gpu, efficiency: Efficiency, sequence_tokens: float = 1024.0) -> list[Profile]:
    """Return a profile for each way to split a model over GPUs of a node.

    They are all tensor parallelisms that the GPU and the heads of the model allow, and experts
    distributed over the same number of GPUs.
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
