"""A prefill and a decode engine of vLLM, measured as the bundled workers are."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benchmarks.engine.vllm_stack import MAX_RUNNING, Stack, stack
from benchmarks.validation.cores import move
from benchmarks.validation.loads import PROFILE_SECONDS
from disagg_wire.roles import DECODE, PREFILL

_DISAGG = str(Path(sys.executable).with_name("disagg"))
_BATCH_TOKENS = 2048
# Room for as many sequences as run at once, each with the longest prompt and answer of the load.
_KV_BYTES = 512 << 20
# The longest prompt that is measured; most prompts of the load are shorter.
_LONGEST_TOKENS = 400


@asynccontextmanager
async def pair(model: Path, cpus: tuple[int, int] | None) -> AsyncIterator[Stack]:
    """Run a pair of engines with one thread each, and a router."""
    more = ("--max-num-batched-tokens", str(_BATCH_TOKENS), "--kv-cache-memory-bytes", str(_KV_BYTES))
    with tempfile.TemporaryDirectory() as folder:
        async with stack(Path(folder), PREFILL, DECODE, more=more, model=model) as found:
            if cpus is not None:
                # An engine and its adapter are the two containers of one pod.
                for pid in (*found.engines["p0"].living(), found.adapters["p0"].pid):
                    move(pid, cpus[0])
            yield found


async def profile(found: Stack, file: Path) -> None:
    """Write the profile that `disagg profile` measures. Raises RuntimeError."""
    options = {
        "--kv-tokens": await found.kv_tokens("d0"), "--max-running": MAX_RUNNING, "--max-batch": MAX_RUNNING,
        "--batch-tokens": _BATCH_TOKENS, "--max-prompt-tokens": _LONGEST_TOKENS,
        "--seconds": PROFILE_SECONDS, "--out": file,
    }  # fmt: skip
    words = [str(word) for option in options.items() for word in option]
    command = await asyncio.create_subprocess_exec(_DISAGG, "profile", f"{found.url}/v1", *words)
    if await command.wait() != 0:
        raise RuntimeError("disagg profile failed")
