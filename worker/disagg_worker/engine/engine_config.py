"""PURE: The configuration of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from disagg_wire.eviction import Eviction
from disagg_wire.roles import Role
from disagg_worker.values.choices import Numerics, Quantization


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """The part of the worker's settings that the engine needs.

    A field has the meaning of the setting of the same name (disagg_worker.settings), whose
    description says more than the ones here.
    """

    name: str
    """The name of the model (the setting `model_name`)."""
    role: Role
    """The role with which the worker starts."""
    dtype: str = "auto"
    """The dtype of weights and activations (model.loader.pick_dtype)."""
    quantization: Quantization = "none"
    """The quantisation of the weights at load (model.quantization)."""
    device: str = "cpu"
    """The device that computes (backend.select)."""
    numerics: Numerics = "auto"
    """Whether tokens may depend on their batch (backend.select)."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """The dtype of the KV cache; `auto` is that of the weights."""
    block_size_tokens: int = 16
    """Tokens per KV block."""
    kv_cache_bytes: int | None = None
    """Bytes of the KV cache over all ranks; None: setup chooses."""
    max_model_len: int | None = None
    """The longest sequence in tokens; None: as long as the model supports."""
    max_running: int = 64
    """The most sequences that are decoded together, and the most prompts of a prefill batch."""
    max_waiting: int = 256
    """The most requests that wait."""
    max_batch_tokens: int = 2048
    """The most tokens of a prefill batch (prefill_scheduler)."""
    prefill_wait_s: float = 0.05
    """The longest wait, in seconds, for others to share a prefill batch (prefill_scheduler)."""
    prefill_utilisation: float = 0.85
    """The share of the saturating tokens with which a batch starts at once (prefill_scheduler)."""
    threads: int = 1
    """Threads of the CPU kernels and of torch."""
    prefix_cache: bool = True
    """Whether KV of earlier prompts is found again (prefix_hash)."""
    eviction: Eviction = "lru"
    """The order in which cached blocks are evicted (block_pool)."""
    host_cache_bytes: int = 0
    """Bytes of host memory for evicted blocks (host_tier); 0: none."""
    growth_reserve_tokens: int = 128
    """Output tokens for which an admitted request gets blocks (decode_scheduler)."""
    saturating_tokens: int = 256
    """The tokens of a prefill batch that saturate the processor (prefill_scheduler)."""
    decode_step_target_s: float | None = None
    """The seconds per decode step above which prefill batches shrink (prefill_limit)."""
    mask_threads: int = 2
    """The threads that compile grammars and compute masks of structured output (masks)."""
    mask_start_s: float = 1.0
    """The processor time, in seconds, that a request's grammar may take before its first token."""
    mask_token_s: float = 0.02
    """The processor time, in seconds, that it may take for each token in addition."""
    tensor_parallel: int = 1
    """The number of ranks (execution)."""
    rank_timeout_s: float = 60.0
    """The seconds that one exchange between ranks may take."""
    rank_start_timeout_s: float = 600.0
    """The seconds that the other ranks may take to get ready, once rank 0 has loaded."""
    staging_buffers: int = 16
    """The buffers through which KV goes to and from a device (execution.staging)."""
    staging_timeout_s: float = 5.0
    """The seconds for which a transfer waits for one (the setting `transfer_idle_s`)."""
    host_region: bool = False
    """Whether other processes are to write KV by NIXL: with more than one rank, this takes host
    memory for a copy of the whole cache.
    """
    log_level: str = "INFO"
    """The log level of the other ranks."""
