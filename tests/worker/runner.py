"""A network with a cache of its own that is fed by hand, without engine and queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch

from disagg_worker.backend.interface import Backend, Batch, Chunk
from disagg_worker.execution.cache_memory import CacheMemory
from disagg_worker.model.loader import load_config
from disagg_worker.model.network import load_network
from disagg_worker.values.layouts import KvLayout

BLOCKS = 64


@dataclass(eq=False)
class Fed:
    """A sequence whose `blocks` are in no order, since nothing may depend on neighbours."""

    tokens: list[int]
    blocks: list[int]
    computed: int = 0
    positions: list[int] = field(default_factory=list)


def fed(tokens: list[int], first_block: int = 1) -> Fed:
    return Fed(list(tokens), [(first_block + 5 * i) % BLOCKS for i in range(12)])


class Runner:
    """A network and its cache. Every call returns logits, as `Decoder.forward` does."""

    def __init__(self, folder: Path, backend: Backend, block_size: int = 4, dtype: torch.dtype = torch.float32) -> None:
        config = load_config(folder)
        self.size = block_size
        self.network = load_network(folder, config, dtype, backend).network
        layout = KvLayout(config.layers, config.kv_heads, config.head_dim, block_size, str(dtype), dtype.itemsize)
        self.memory = CacheMemory(layout, BLOCKS, dtype)
        self.memory.tensor.fill_(7.0)  # The content of unused slots must not matter.
        self._program = backend.decode_program(self.network, self.memory.tensor) or self.network.forward

    def _slots(self, s: Fed, positions: range) -> list[int]:
        return [s.blocks[p // self.size] * self.size + p % self.size for p in positions]

    @torch.inference_mode()
    def prefill(self, *work: tuple[Fed, int]) -> torch.Tensor:
        """Compute n more tokens of each sequence."""
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        last, chunks = [], []
        for s, n in work:
            at, start = range(s.computed, s.computed + n), len(ids)
            ids += s.tokens[at.start : at.stop]
            positions += at
            slots += self._slots(s, at)
            chunks.append(Chunk(start, start + n, at.start, torch.tensor(s.blocks[: -(-at.stop // self.size)])))
            if at.stop == len(s.tokens):
                last.append(len(ids) - 1)
            s.computed += n
        token_ids, where, kept, wanted = (torch.tensor(x, dtype=torch.long) for x in (ids, positions, slots, last))
        return self.network.forward(Batch(token_ids, where, kept, wanted, chunks=tuple(chunks)), self.memory.tensor)

    def batch(self, *running: Fed) -> Batch:
        """Return a batch with the last token of each sequence."""
        width = max(s.computed // self.size + 1 for s in running)
        tables = [(s.blocks[: s.computed // self.size + 1] + [s.blocks[0]] * width)[:width] for s in running]
        ids, at = [s.tokens[-1] for s in running], [s.computed for s in running]
        slots = [self._slots(s, range(s.computed, s.computed + 1))[0] for s in running]
        token_ids, positions, kept, last = (torch.tensor(x) for x in (ids, at, slots, list(range(len(running)))))
        return Batch(token_ids, positions, kept, last, tables=torch.tensor(tables), lengths=positions + 1)

    @torch.inference_mode()
    def decode(self, *running: Fed) -> torch.Tensor:
        logits = self._program(self.batch(*running), self.memory.tensor)
        for s in running:
            s.computed += 1
        return logits
