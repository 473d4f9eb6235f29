"""Rotary position embeddings and the ways of stretching them beyond the trained length (formulas:
transformers, modeling_rope_utils).
"""

from __future__ import annotations

import math

import torch

from disagg_worker.backend.interface import Rotary
from disagg_worker.model.config import LinearScaling, Llama3Scaling, ModelConfig, YarnScaling


def _llama3(inverse: torch.Tensor, scaling: Llama3Scaling) -> torch.Tensor:
    """Stretch low frequencies, keep high ones and blend those between."""
    wavelength = 2 * math.pi / inverse
    low = scaling.original_max_position_embeddings / scaling.low_freq_factor
    high = scaling.original_max_position_embeddings / scaling.high_freq_factor
    smooth = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    out = torch.where(wavelength > low, inverse / scaling.factor, inverse)
    return torch.where((wavelength <= low) & (wavelength >= high), blended, out)


def _yarn(inverse: torch.Tensor, scaling: YarnScaling, theta: float, dim: int) -> torch.Tensor:
    """Stretch dimensions that turn fewer than beta_slow times in the trained length and keep those
    that turn more than beta_fast times, with a ramp between.
    """

    def dimension(turns: float) -> float:
        return dim * math.log(scaling.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float32) - low) / (high - low or 0.001)).clamp(0, 1)
    return inverse / scaling.factor * ramp + inverse * (1 - ramp)


def rotary_tables(config: ModelConfig, positions: int, dtype: torch.dtype, device: torch.device) -> Rotary:
    """Return cos and sin [positions, head_dim] for the base and the scaling of a model."""
    inverse = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    scaling, factor = config.rope_scaling, 1.0
    if isinstance(scaling, Llama3Scaling):
        inverse = _llama3(inverse, scaling)
    elif isinstance(scaling, LinearScaling):
        inverse = inverse / scaling.factor
    elif isinstance(scaling, YarnScaling):
        inverse, factor = _yarn(inverse, scaling, config.rope_theta, config.head_dim), scaling.attention_factor
    angles = torch.outer(torch.arange(positions, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return Rotary((angles.cos() * factor).to(device, dtype), (angles.sin() * factor).to(device, dtype))
