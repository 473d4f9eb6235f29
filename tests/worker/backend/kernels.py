"""The kernels of every level that this CPU can run, and inputs for them."""

from __future__ import annotations

from pathlib import Path

import torch

from disagg_worker.backend.cpu import build, library
from disagg_worker.backend.cpu.backend import CpuBackend
from disagg_worker.backend.interface import Batch, Chunk, DenseWeight, GroupQuantizedWeight, Weight

LEVELS = build.supported_levels(Path("/proc/cpuinfo").read_text())
# What compilers made of the same sources is kept from one run of the tests to the next.
CACHE = Path.home() / ".cache" / "disagg"


def backend(level: str, threads: int = 1) -> CpuBackend:
    return CpuBackend(library.load(build.compile_level(level, CACHE / "kernels")), threads)


def weight(kind: str, outputs: int, inputs: int, group: int = 32) -> Weight:
    """Return a random weight, seeded by its shape. `kind` is float32, bfloat16, int8 or int4."""
    generator = torch.Generator().manual_seed(outputs * 7919 + inputs)
    if kind.startswith("int"):
        bits = int(kind[3:])
        shape = (outputs, inputs // group)
        q = torch.randint(0, 2**bits, (outputs, inputs), dtype=torch.uint8, generator=generator)
        scale = torch.rand(shape, generator=generator) / 2**bits
        return GroupQuantizedWeight(bits, group, q, scale, torch.rand(shape, generator=generator) * 2**bits)
    return DenseWeight(torch.randn(outputs, inputs, generator=generator).to(getattr(torch, kind)))


def cache(
    kv_heads: int, head_dim: int, dtype: torch.dtype, blocks: int = 40, layers: int = 2, size: int = 8
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(head_dim)
    return torch.randn(blocks, layers, 2, kv_heads, size, head_dim, generator=generator).to(dtype)


def decode_batch(lengths: list[int], blocks: int = 40, size: int = 8) -> Batch:
    """Return a decode batch with scattered blocks and tables as wide as the longest one needs."""
    width = max(-(-n // size) for n in lengths)
    tables = torch.stack([torch.randperm(blocks, generator=torch.Generator().manual_seed(n))[:width] for n in lengths])
    at = torch.tensor(lengths) - 1
    slots = tables[torch.arange(len(lengths)), at // size] * size + at % size
    return Batch(torch.zeros_like(at), at, slots, torch.arange(len(lengths)), tables=tables, lengths=at + 1)


def prefill_batch(chunks: list[tuple[int, int]], blocks: int = 40, size: int = 8) -> Batch:
    """Return a prefill batch of chunks (first position, tokens), each of a sequence of its own."""
    made, positions, slots, start = [], [], [], 0
    order = torch.randperm(blocks, generator=torch.Generator().manual_seed(3))
    for first, n in chunks:
        needed = -(-(first + n) // size)
        table, order = order[:needed].contiguous(), order[needed:]
        at = torch.arange(first, first + n)
        made.append(Chunk(start, start + n, first, table))
        positions.append(at)
        slots.append(table[at // size] * size + at % size)
        start += n
    at, slot = torch.cat(positions), torch.cat(slots)
    return Batch(torch.zeros_like(at), at, slot, torch.arange(len(at)), tuple(made))
