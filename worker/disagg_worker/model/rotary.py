"""Rotary position embeddings and the ways they are stretched beyond the trained length."""

from __future__ import annotations

import math

import torch

from disagg_worker.backend.api import Rotary
from disagg_worker.model.config import ModelConfig, RopeScaling


def _scaled(inverse: torch.Tensor, scaling: RopeScaling) -> torch.Tensor:
    """Llama 3.1: low frequencies are stretched, high ones kept, those between blended (transformers, modeling_rope_utils)."""
    wavelength = 2 * math.pi / inverse
    low = scaling.original_max_position_embeddings / scaling.low_freq_factor
    high = scaling.original_max_position_embeddings / scaling.high_freq_factor
    smooth = (scaling.original_max_position_embeddings / wavelength - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - smooth) * inverse / scaling.factor + smooth * inverse
    out = torch.where(wavelength > low, inverse / scaling.factor, inverse)
    return torch.where((wavelength <= low) & (wavelength >= high), blended, out)


def rotary_tables(config: ModelConfig, dtype: torch.dtype, device: torch.device) -> Rotary:
    """cos and sin [max_positions, head_dim] of the config's base and scaling."""
    inverse = 1.0 / config.rope_theta ** (torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim)
    if config.rope_scaling is not None:
        inverse = _scaled(inverse, config.rope_scaling)
    angles = torch.outer(torch.arange(config.max_positions, dtype=torch.float32), inverse)
    angles = torch.cat((angles, angles), dim=-1)
    return Rotary(angles.cos().to(device, dtype), angles.sin().to(device, dtype))
