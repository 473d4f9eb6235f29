"""The loading of a model folder as a network on a backend."""

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
    """A loaded network and its digest."""

    network: Decoder
    digest: str
    """The hex SHA-256 of configuration and weights, followed by `+int4` or the like if they were
    quantised here; empty on ranks above 0.
    """


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
    """Load the network of a model folder.

    Each matrix is handed to the backend before the next one is read. `positions` is the number of
    positions that the rotary tables cover. Raises ModelError, which names the file, field or
    tensor.
    """
    shard = shard or Shard()
    with Checkpoint(folder, on_progress, hashed=shard.rank == 0) as checkpoint:
        source = make_source(checkpoint, config, dtype, shard, quantization)
        network = Decoder(config, source, backend, positions, shard, parallel)
        # The KV of differently quantised weights must not mix, so the digest tells them apart.
        suffix = "" if quantization == "none" else f"+{quantization}"
        return Loaded(network, (checkpoint.digest() + suffix) if shard.rank == 0 else "")
