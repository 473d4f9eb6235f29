"""The facts of a pool, as tests render engines from them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from disagg_operator.engines.contract import EnginePool

POOL = EnginePool(
    role="prefill",
    model="/models/m",
    served_name="m",
    revision=None,
    uses_hub=False,
    loras=(),
    dtype="auto",
    quantization="none",
    max_model_len=None,
    block_size=16,
    prefix_cache=True,
    threads=1,
    tensor=1,
    accelerators=1,
    max_running=64,
    max_batch_tokens=2048,
    kv_cache_bytes=None,
    drain_s=300,
    lease_s=60,
    transport="auto",
    forbids_fallback=False,
    interface=None,
    copies=("cuda_ipc", "cuda_copy"),
    experimental=False,
    args=(),
)


def pool(**changes: Any) -> EnginePool:
    """Return the facts with changes."""
    return replace(POOL, **changes)


def value_of(command: tuple[str, ...], flag: str) -> str:
    """Return the value behind the only use of a flag."""
    (place,) = (i for i, word in enumerate(command) if word == flag)
    return command[place + 1]
