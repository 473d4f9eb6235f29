"""How an engine is set up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from disagg_worker.engine.block_pool import Eviction
from disagg_worker.values.choices import Quantization, Role


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`max_model_len` None: what the model was trained for.

    Units are in the names.

    device: of backend.select. kv_cache_dtype: auto is the model's; fp8 (e4m3, saturating) holds
    twice as much as a 16-bit one. quantization: of the weights at load; a checkpoint that is
    quantised stays as it is. decode_step_target_s: prefill batches shrink while decode's steps take
    longer than this (prefill_limit); None: they may. saturating_tokens: prefill of more tokens at
    once is not faster a token (measure: benchmarks/). tensor_parallel: processes (and GPUs) that
    the worker is split over; rank_timeout_s: of one exchange between them, rank_start_timeout_s:
    until all are ready, once the first is. kv_cache_bytes: over all of them; None: 256 MiB on a
    CPU, what is free on GPUs. growth_reserve_tokens: how much of its output a request is admitted
    with. host_cache_bytes: for evicted blocks, 0 for none.
    """

    name: str
    role: Role
    dtype: str = "auto"
    quantization: Quantization = "none"
    device: str = "cpu"
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    block_size_tokens: int = 16
    kv_cache_bytes: int | None = None
    max_model_len: int | None = None
    max_running: int = 64
    max_waiting: int = 256
    max_batch_tokens: int = 2048
    prefill_wait_s: float = 0.05
    prefill_utilisation: float = 0.85
    threads: int = 1
    prefix_cache: bool = True
    eviction: Eviction = "lru"
    host_cache_bytes: int = 0
    growth_reserve_tokens: int = 128
    saturating_tokens: int = 256
    decode_step_target_s: float | None = None
    tensor_parallel: int = 1
    rank_timeout_s: float = 60.0
    rank_start_timeout_s: float = 600.0
    log_level: str = "INFO"
