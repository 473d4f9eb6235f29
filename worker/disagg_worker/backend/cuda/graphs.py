"""Decode steps as CUDA graphs, so that one launch takes the place of hundreds.

There is a graph for each of a few batch sizes; a batch uses the next larger one.
"""

from __future__ import annotations

from typing import Any

import torch

from disagg_worker.backend.cuda.static_batch import BATCH_SIZES, StaticBatch, bucket
from disagg_worker.backend.interface import Batch, DecoderNetwork

_WARM_UP_RUNS = 2


class _Graph:
    """The recorded step of one batch size."""

    def __init__(self, network: DecoderNetwork, cache: torch.Tensor, static: StaticBatch, pool: Any) -> None:
        batch = static.batch
        stream: Any = torch.cuda.Stream
        side = stream(network.device)
        side.wait_stream(torch.cuda.current_stream())
        # These runs compile the kernels and let cuBLAS and NCCL allocate their memory.
        with torch.cuda.stream(side):
            for _ in range(_WARM_UP_RUNS):
                network.forward(batch, cache)
        torch.cuda.current_stream().wait_stream(side)
        self._graph: Any = torch.cuda.CUDAGraph()
        # Other threads may copy KV during the capture.
        with torch.cuda.graph(self._graph, pool=pool, capture_error_mode="thread_local"):
            self.logits = network.forward(batch, cache)

    def replay(self) -> torch.Tensor:
        self._graph.replay()
        return self.logits


class DecodeGraphs:
    """A DecodeProgram over CUDA graphs.

    It takes batches on the CPU. The logits are valid until the next call.
    """

    def __init__(self, network: DecoderNetwork, cache: torch.Tensor) -> None:
        self._network, self._cache = network, cache
        size = cache.shape[4]
        self._widest = -(-network.rotary.cos.shape[0] // size)
        self._static: dict[int, StaticBatch] = {}
        self._graphs: dict[int, _Graph] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, batch: Batch, cache: torch.Tensor) -> torch.Tensor:
        from disagg_worker.backend.interface import to_device

        rows = len(batch.token_ids)
        n = bucket(rows)
        if n is None:
            return self._network.forward(to_device(batch, self._network.device), cache)
        if n not in self._static:
            self._static[n] = StaticBatch(n, self._widest, self._network.device)
        self._static[n].fill(batch)
        if n not in self._graphs:
            self._graphs[n] = _Graph(self._network, self._cache, self._static[n], self._pool)
        return self._graphs[n].replay()[:rows]


__all__ = ["BATCH_SIZES", "DecodeGraphs"]
