"""Steps that compute nothing of use, before the first request: kernels are compiled, graphs
recorded, libraries take their memory. A worker is ready only after them, so no request pays for it.
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
# Each picks other kernels, of ours or of cuBLAS.
_PREFILL_TOKENS = (1, 16, 64, 128, 512, 2048, 8192)


def steps(
    block_size: int, blocks: int, max_len: int, batch_sizes: tuple[int, ...], max_running: int, max_batch_tokens: int
) -> Iterator[Step]:
    """Decode steps of every size that will be asked for, the largest first (so that memory is taken
    once), then prefills. All write to blocks that are free; each clears what it writes to, and the
    last step's are cleared by whoever uses them.
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
    """Run them; how many it were."""
    started_s, count = time.monotonic(), 0
    last: tuple[int, ...] = ()
    for step in made:
        executor.run(step)
        count, last = count + 1, tuple(dict.fromkeys((*last, *step.clear)))
    if count:
        # One more, the smallest there is, to leave the cache as it was: zeros, but for its own
        # token, which nobody refers to.
        one = torch.zeros(1, dtype=torch.long)
        executor.run(Step(Batch(one, one, one, one, (Chunk(0, 1, 0, one),)), clear=last))
        log.info("%d warm-up steps took %.1f s", count, time.monotonic() - started_s)
    return count
