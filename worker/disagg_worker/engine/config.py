"""How an engine is set up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Role = Literal["prefill", "decode", "both"]


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """`max_model_len` None: what the model was trained for. Units are in the names."""

    name: str
    role: Role
    dtype: str = "auto"
    device: str = "cpu"
    block_size_tokens: int = 16
    kv_cache_bytes: int = 256 << 20
    max_model_len: int | None = None
    max_running: int = 64
    max_waiting: int = 256
    max_batch_tokens: int = 2048
    prefill_wait_s: float = 0.05
    prefill_utilisation: float = 0.85
    threads: int = 1
