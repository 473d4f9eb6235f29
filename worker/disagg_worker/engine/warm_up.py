"""The warm-up: steps without useful results that run before the first request.

They compile kernels, record graphs and let libraries allocate their memory. A worker is ready only
after them, so that no request has to wait for this.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator

import torch

from disagg_worker.backend.interface import Batch, Chunk
from disagg_worker.engine.block_pool import blocks_for
from disagg_worker.execution.executor import Executor, Step

log = logging.getLogger(__name__)
# Each size selects other kernels, of this project or of cuBLAS.
_PREFILL_TOKENS = (1, 16, 64, 128, 512, 2048, 8192)


def steps(
    block_size: int, blocks: int, max_len: int, batch_sizes: tuple[int, ...], max_running: int, max_batch_tokens: int
) -> Iterator[Step]:
    """Yield decode steps of all sizes that will be needed, the largest first so that memory is
    allocated once, and then prefill steps.

    All of them write to free blocks, which they clear first.
    """
    largest = next((n for n in batch_sizes if n >= max_running), batch_sizes[-1] if batch_sizes else 0)
    for n in sorted((n for n in batch_sizes if n <= largest), reverse=True):
        zeros = torch.zeros(n, dtype=torch.long)
        yield Step(Batch(zeros, zeros, zeros, torch.arange(n), tables=zeros[:, None], lengths=zeros + 1), clear=(0,))
    room = min(max_len - 1, max_batch_tokens, blocks * block_size)
    for n in dict.fromkeys(min(n, room) for n in _PREFILL_TOKENS):
        at = torch.arange(n)
        table = torch.arange(blocks_for(n, block_size))
        yield Step(Batch(torch.zeros_like(at), at, at, at[-1:], (Chunk(0, n, 0, table),)), clear=tuple(table.tolist()))


def warm_up(executor: Executor, made: Iterator[Step]) -> int:
    """Run the steps and return their number."""
    started_s, count = time.monotonic(), 0
    last: tuple[int, ...] = ()
    for step in made:
        executor.run(step)
        count, last = count + 1, tuple(dict.fromkeys((*last, *step.clear)))
    if count:
        # One more step, the smallest one, clears the cache: it is left with zeros, but for the
        # step's own token, to which nobody refers.
        one = torch.zeros(1, dtype=torch.long)
        executor.run(Step(Batch(one, one, one, one, (Chunk(0, 1, 0, one),)), clear=last))
        log.info("%d warm-up steps took %.1f s", count, time.monotonic() - started_s)
    return count
