"""The set-up of an engine: the parts of the network on their devices, and the KV cache."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from disagg_protocol.errors import ModelError
from disagg_worker.backend.interface import Backend
from disagg_worker.engine.block_pool import blocks_for
from disagg_worker.engine.engine_config import EngineConfig
from disagg_worker.engine.warm_up import steps, warm_up
from disagg_worker.execution.cache_memory import CacheMemory, HostCopy
from disagg_worker.execution.collectives import Collectives
from disagg_worker.execution.executor import Executor, LocalExecutor
from disagg_worker.execution.group_memory import GroupMemory
from disagg_worker.execution.leader import Group, GroupExecutor
from disagg_worker.execution.shared_staging import SharedStaging
from disagg_worker.execution.staging import Staging
from disagg_worker.model.checkpoint import OnProgress
from disagg_worker.model.config import ModelConfig
from disagg_worker.model.network import load_network
from disagg_worker.model.weights import Shard
from disagg_worker.values.layouts import KvLayout

log = logging.getLogger(__name__)
_CPU_CACHE_BYTES = 256 << 20
# The share of the GPU memory that is free once the weights are loaded; the rest is for activations,
# graphs and NCCL.
_GPU_CACHE_PART = 0.85


@dataclass(frozen=True, slots=True)
class Machine:
    """The executor of steps and the KV cache that it works on."""

    executor: Executor
    memory: CacheMemory
    """Rank 0's part of the cache, whose views show the whole KV."""
    layout: KvLayout
    blocks: int
    """The number of KV blocks."""
    digest: str
    """The digest of the model (see network.Loaded)."""


@dataclass(frozen=True, slots=True)
class Plan:
    """The input of the set-up."""

    folder: Path
    config: EngineConfig
    model: ModelConfig
    backend: Backend
    dtype: torch.dtype
    """The dtype of the weights."""
    max_len: int
    """The longest sequence in tokens."""

    @property
    def cache_dtype(self) -> torch.dtype:
        return torch.float8_e4m3fn if self.config.kv_cache_dtype == "fp8" else self.dtype

    @property
    def layout(self) -> KvLayout:
        m, dtype = self.model, self.cache_dtype
        return KvLayout(
            m.layers,
            m.kv_heads,
            m.head_dim,
            self.config.block_size_tokens,
            str(dtype).removeprefix("torch."),
            dtype.itemsize,
        )


def set_up(plan: Plan, on_progress: OnProgress | None, on_lost: Callable[[str], None]) -> Machine:
    """Load the network, allocate the KV cache and run the warm-up steps. Raises ModelError.

    `on_lost` is called if a rank of the group ends, which ends this worker too.
    """
    if plan.config.kv_cache_dtype == "fp8" and not plan.backend.fp8_cache:
        raise ModelError(
            f"kv_cache_dtype: fp8 is not supported by the {plan.backend.name} backend on {plan.backend.device}"
        )
    machine = _alone(plan, on_progress) if plan.config.tensor_parallel == 1 else _split(plan, on_progress, on_lost)
    c, sizes = plan.config, plan.backend.decode_sizes
    log.info(
        "backend %s (numerics %s) on %s, %d rank(s), weights and activations %s, KV cache %s of %d blocks",
        plan.backend.name,
        "exact" if plan.backend.exact else "fast",
        plan.backend.device,
        c.tensor_parallel,
        plan.layout.dtype if c.quantization == "none" else f"{plan.layout.dtype} and {c.quantization}",
        machine.layout.dtype,
        machine.blocks,
    )
    if sizes:
        try:
            warm_up(
                machine.executor,
                steps(c.block_size_tokens, machine.blocks, plan.max_len, sizes, c.max_running, c.max_batch_tokens),
            )
        except BaseException:
            machine.executor.close()
            raise
    return machine


def _split(plan: Plan, on_progress: OnProgress | None, on_lost: Callable[[str], None]) -> Machine:
    config = plan.config
    Shard(0, config.tensor_parallel).check(plan.model)
    if config.host_cache_bytes:
        raise ModelError("host_cache_bytes: the host tier is not supported with tensor parallelism")
    start = {
        "folder": str(plan.folder),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "device": "cuda" if plan.backend.device.type == "cuda" else config.device,
        "threads": config.threads,
        "numerics": config.numerics,
        "quantization": config.quantization,
        "positions": plan.max_len,
        "log_level": config.log_level,
    }
    group = Group(start, config.tensor_parallel, config.rank_timeout_s, config.rank_start_timeout_s, on_lost)
    try:
        return _together(plan, group, on_progress)
    except BaseException:
        group.close()
        raise


def _alone(plan: Plan, on_progress: OnProgress | None) -> Machine:
    config, device, layout = plan.config, plan.backend.device, plan.layout
    loaded = load_network(
        plan.folder,
        plan.model,
        plan.dtype,
        plan.backend,
        positions=plan.max_len,
        quantization=config.quantization,
        on_progress=on_progress,
    )
    blocks = _blocks(plan, [_free_bytes(device)])
    memory = CacheMemory(layout, blocks, plan.cache_dtype, device, staging=_staging(config, device))
    return Machine(LocalExecutor(loaded.network, memory), memory, layout, blocks, loaded.digest)


def _staging(config: EngineConfig, device: torch.device) -> Staging | None:
    """Return the buffers between the device and the network; the CPU needs none."""
    if device.type == "cpu":
        return None
    return Staging(config.staging_buffers, config.staging_timeout_s, pinned=True)


def _together(plan: Plan, group: Group, on_progress: OnProgress | None) -> Machine:
    config, device, layout = plan.config, plan.backend.device, plan.layout
    collectives = Collectives(0, group.size, device, group.timeout_s)
    shard = Shard(0, group.size)
    loaded = load_network(
        plan.folder,
        plan.model,
        plan.dtype,
        plan.backend,
        positions=plan.max_len,
        shard=shard,
        parallel=collectives,
        quantization=config.quantization,
        on_progress=on_progress,
    )
    blocks = _blocks(plan, [_free_bytes(device), *(int(facts["free_bytes"]) for facts in group.facts())])
    group.make_cache(layout, blocks, 0 if config.host_region else config.staging_buffers)
    group.connect(collectives)
    shape = layout, blocks, plan.cache_dtype, device, shard.part(layout.kv_heads)
    if config.host_region:
        memory = CacheMemory(*shape, HostCopy(layout, blocks, plan.cache_dtype, group.memory_fd))
    else:
        buffers = SharedStaging(group.memory_fd, config.staging_buffers, config.staging_timeout_s)
        memory = GroupMemory(*shape, buffers, group.begin_move)
    executor = GroupExecutor(group, LocalExecutor(loaded.network, memory))
    group.await_ready()
    log.info("%d ranks are ready", group.size)
    return Machine(executor, memory, layout, blocks, loaded.digest)


def _free_bytes(device: torch.device) -> int:
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def _blocks(plan: Plan, free_bytes: list[int]) -> int:
    """Return the number of blocks of the cache, for the free bytes of each rank's device.

    Raises ModelError if the longest request would not fit.
    """
    size, wanted = plan.config.block_size_tokens, plan.config.kv_cache_bytes
    if wanted is None:
        on_gpu = plan.backend.device.type == "cuda"
        wanted = math.floor(min(free_bytes) * len(free_bytes) * _GPU_CACHE_PART) if on_gpu else _CPU_CACHE_BYTES
    blocks = wanted // (plan.layout.bytes_per_token * size)
    if blocks < blocks_for(plan.max_len, size):
        raise ModelError(f"kv_cache_bytes: {wanted} hold {blocks * size} tokens, max_model_len is {plan.max_len}")
    return blocks
