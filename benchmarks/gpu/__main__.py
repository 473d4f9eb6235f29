"""The program `python -m benchmarks.gpu`: roof lines, decode, prefill and attention.

It prints a table and writes it to benchmarks/results/gpu.md. The exit status is 1 if a goal is
missed.

With --small it uses a tiny model, to check that the script itself works where there is no GPU: the
kernels are interpreted, and the times mean nothing.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import torch

from benchmarks.gpu import attention, model, roof
from benchmarks.gpu.clock import seconds
from benchmarks.machine import machine
from disagg_worker.backend.cuda import CudaBackend
from disagg_worker.model.config import ModelConfig
from disagg_worker.model.decoder import Decoder
from disagg_worker.values.choices import Quantization

BLOCK_SIZE = 16
DECODE_GOAL, PREFILL_GOAL = 0.80, 0.65
RESULTS = Path(__file__).parents[1] / "results" / "gpu.md"


class Report:
    """The lines of Markdown, and whether every goal was met."""

    def __init__(self, keep: bool) -> None:
        self.lines: list[str] = []
        self.passed = True
        self._keep = keep

    def line(self, text: str = "") -> None:
        self.lines.append(text)
        print(text, flush=True)

    def judged(self, share: float, goal: float) -> str:
        self.passed &= share >= goal
        return f"{100 * share:.0f} % | {'pass' if share >= goal else 'FAIL'} ({100 * goal:.0f} %)"

    def save(self) -> None:
        if self._keep:
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text("\n".join(self.lines) + "\n", encoding="utf-8")


@torch.inference_mode()
def _decode(
    r: Report, c: ModelConfig, small: bool, device: torch.device, bytes_per_s: float, quantization: Quantization
) -> None:
    """Measure decode steps.

    A step moves all weights except the embedding once, and the KV of every sequence. The figure is
    the time of these bytes at the roof line relative to the time of a step.
    """
    length, sizes = (40, (1, 2)) if small else (1024, (1, 2, 4, 8, 16, 32, 64))
    dtype = torch.float16 if small else torch.bfloat16
    network = Decoder(c, model.source(c, dtype, device, quantization), CudaBackend(device), c.max_positions)
    weights = (
        sum(m.weight_bytes for x in network.layers for m in (x.qkv, x.out, x.gate_up, x.down))
        + network.head.weight_bytes
    )
    blocks = sizes[-1] * -(-length // BLOCK_SIZE)
    cache = torch.randn(blocks, c.layers, 2, c.kv_heads, BLOCK_SIZE, c.head_dim, device=device).to(dtype)
    program = network.backend.decode_program(network, cache) or network.forward
    r.line(f"\n## Decode, {length} tokens of context, weights {quantization} ({weights / 1e9:.2f} GB)\n")
    r.line("| sequences | ms per step | tokens/s | GB/s | share of the memory bandwidth | goal |")
    r.line("|---|---|---|---|---|---|")
    for n in sizes:
        batch = model.decode_batch(n, length, BLOCK_SIZE)
        step_s = seconds(partial(program, batch, cache), device)
        moved = weights + n * length * 2 * c.layers * c.kv_heads * c.head_dim * cache.element_size()
        share = moved / step_s / bytes_per_s
        figures = f"{1e3 * step_s:.2f} | {n / step_s:.0f} | {moved / step_s / 1e9:.0f}"
        r.line(f"| {n} | {figures} | {r.judged(share, DECODE_GOAL)} |")


@torch.inference_mode()
def _prefill(r: Report, c: ModelConfig, small: bool, device: torch.device) -> None:
    dtype = torch.float16 if small else torch.bfloat16
    network = Decoder(c, model.source(c, dtype, device, "none"), CudaBackend(device), c.max_positions)
    sizes = (40,) if small else (512, 2048, 8192)
    blocks = -(-sizes[-1] // BLOCK_SIZE)
    cache = torch.zeros(blocks, c.layers, 2, c.kv_heads, BLOCK_SIZE, c.head_dim, device=device, dtype=dtype)
    r.line("\n## Prefill, one prompt\n")
    r.line("| tokens | ms | tokens/s | TFLOP/s | matmul TFLOP/s | share of it | goal |\n|---|---|---|---|---|---|---|")
    for n in sizes:
        batch, peak = model.prefill_batch(n, BLOCK_SIZE, device), roof.matmul_flops_per_s(c, n, dtype, device)
        took_s = seconds(partial(network.forward, batch, cache), device)
        rate = roof.prefill_flops(c, n) / took_s
        shown = f"{1e3 * took_s:.1f} | {n / took_s:.0f} | {rate / 1e12:.0f} | {peak / 1e12:.0f}"
        r.line(f"| {n} | {shown} | {r.judged(rate / peak, PREFILL_GOAL)} |")


@torch.inference_mode()
def _attention(
    r: Report, c: ModelConfig, small: bool, device: torch.device, bytes_per_s: float, processors: int
) -> None:
    r.line("\n## Decode attention, one layer\n")
    r.line("| sequences | context | kernel | us | share of the memory bandwidth |\n|---|---|---|---|---|")
    dtype = torch.float16 if small else torch.bfloat16
    for sequences, length in ((2, 40),) if small else ((1, 8192), (16, 2048), (64, 1024)):
        moved = sequences * length * 2 * c.kv_heads * c.head_dim * 2
        for name, took_s in attention.rows(c, sequences, length, BLOCK_SIZE, dtype, device, processors):
            figures = "- | -" if took_s is None else f"{1e6 * took_s:.0f} | {100 * moved / took_s / bytes_per_s:.0f} %"
            r.line(f"| {sequences} | {length} | {name} | {figures} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true")
    small = parser.parse_args().small
    if not small and not torch.cuda.is_available():
        sys.exit("benchmarks.gpu: torch sees no GPU (--small tries the script without one)")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    r, c = Report(keep=not small), model.config(small)
    gpu = torch.cuda.get_device_properties(device) if device.type == "cuda" else None
    processors = gpu.multi_processor_count if gpu else 8
    name = gpu.name if gpu else "no GPU: the times are meaningless"
    r.line(f"# GPU engine\n\n{name}; torch {torch.__version__}; {machine()}")
    bytes_per_s = roof.read_bytes_per_s(device, 1 << 20 if small else 4 << 30)
    r.line(f"\nMemory bandwidth measured in this run: {bytes_per_s / 1e9:.0f} GB/s.")
    quantizations: tuple[Quantization, ...] = ("none", "int4") if small else ("none", "int8", "int4", "fp8")
    for quantization in quantizations:
        _decode(r, c, small, device, bytes_per_s, quantization)
        if device.type == "cuda":
            torch.cuda.empty_cache()
    _prefill(r, c, small, device)
    _attention(r, c, small, device, bytes_per_s, processors)
    r.save()
    return 0 if r.passed or small else 1


if __name__ == "__main__":
    sys.exit(main())
