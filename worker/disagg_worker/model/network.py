"""From a model folder to a network on a backend."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from disagg_worker.backend.interface import Backend
from disagg_worker.model.checkpoint import Checkpoint, OnProgress
from disagg_worker.model.config import ModelConfig
from disagg_worker.model.decoder import Decoder, Parallel
from disagg_worker.model.quantization import make_source
from disagg_worker.model.weights import Shard
from disagg_worker.values.choices import Quantization


@dataclass(frozen=True, slots=True)
class Loaded:
    """The network, and the digest of config and weights (hex SHA-256, with `+int4` or the like
    where it was quantised here; empty on ranks above 0).
    """

    network: Decoder
    digest: str


def load_network(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    backend: Backend,
    *,
    positions: int | None = None,
    shard: Shard | None = None,
    parallel: Parallel | None = None,
    quantization: Quantization = "none",
    on_progress: OnProgress | None = None,
) -> Loaded:
    """Read matrix by matrix, each handed to the backend before the next is read.

    `positions`: how many the rotary tables cover.

    Raises ModelError naming file, field or tensor.
    """
    shard = shard or Shard()
    with Checkpoint(folder, on_progress, hashed=shard.rank == 0) as checkpoint:
        source = make_source(checkpoint, config, dtype, shard, quantization)
        network = Decoder(config, source, backend, positions, shard, parallel)
        # KV of differently quantised weights must not mix, so the digest tells them apart.
        suffix = "" if quantization == "none" else f"+{quantization}"
        return Loaded(network, (checkpoint.digest() + suffix) if shard.rank == 0 else "")
