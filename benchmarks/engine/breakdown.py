"""A breakdown of the time of a step.

The kernels run in the order in which the engine runs them, and the processor time of each call is
measured.

    python -m benchmarks.engine.breakdown [--dtype bfloat16] [--quantization none]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.engine import peers
from benchmarks.engine.run import prepare
from disagg_worker.backend.cpu.backend import ask_for_huge_pages
from disagg_worker.backend.interface import Backend, Batch, Chunk, DecodeProgram, Linear, Weight
from disagg_worker.backend.select import select
from disagg_worker.model.loader import load_config
from disagg_worker.model.network import load_network

_SIZE = 16


class Timed:
    """A Backend that measures the calls of another one by kind."""

    def __init__(self, inner: Backend) -> None:
        self._inner = inner
        self.name, self.device, self.compute_dtype = inner.name, inner.device, inner.compute_dtype
        self.fp8_cache, self.exact, self.decode_sizes = inner.fp8_cache, inner.exact, inner.decode_sizes
        self.seconds: dict[str, float] = defaultdict(float)
        self.rms_norm, self.add_rms_norm = (
            self._timed("norms", inner.rms_norm),
            self._timed("norms", inner.add_rms_norm),
        )
        self.store_qkv, self.attend = (
            self._timed("rotate and store", inner.store_qkv),
            self._timed("attention", inner.attend),
        )
        self.gated = self._timed("gate", inner.gated)

    def _timed(self, kind: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any) -> Any:
            start = time.process_time()
            out = call(*arguments)
            self.seconds[kind] += time.process_time() - start
            return out

        return run

    def linear(self, weight: Weight, bias: torch.Tensor | None) -> Linear:
        return TimedLinear(self._inner.linear(weight, bias), self._timed)

    def decode_program(self, network: Any, cache: torch.Tensor) -> DecodeProgram | None:
        return None


class TimedLinear:
    def __init__(self, inner: Linear, timed: Callable[[str, Callable[..., Any]], Callable[..., Any]]) -> None:
        self.in_features, self.out_features, self.weight_bytes = (
            inner.in_features,
            inner.out_features,
            inner.weight_bytes,
        )
        self._call = timed("products", inner)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self._call(x)
        return out


def decode_batch(sequences: int, context: int) -> Batch:
    blocks = -(-(context + 1) // _SIZE)
    tables = torch.arange(sequences * blocks).view(sequences, blocks)
    at = torch.full((sequences,), context)
    slots = tables[:, context // _SIZE] * _SIZE + context % _SIZE
    return Batch(torch.arange(sequences) + 1, at, slots, torch.arange(sequences), tables=tables, lengths=at + 1)


def prefill_batch(tokens: int) -> Batch:
    at = torch.arange(tokens)
    chunk = Chunk(0, tokens, 0, torch.arange(-(-tokens // _SIZE)))
    return Batch(at + 1, at, at, torch.tensor([tokens - 1]), (chunk,))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--quantization", default="none", choices=["none", "int8", "int4"])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    dtype = getattr(torch, arguments.dtype)
    peers.cache().mkdir(parents=True, exist_ok=True)
    folder = prepare(arguments.dtype)
    config, backend = load_config(folder), Timed(select("cpu", 1))
    network = load_network(folder, config, dtype, backend, quantization=arguments.quantization).network
    cache = torch.zeros(512, config.layers, 2, config.kv_heads, _SIZE, config.head_dim, dtype=dtype)
    ask_for_huge_pages(cache)
    cache.normal_()  # memory that nothing has written to is one shared page
    cases = {
        "decode 1x128": decode_batch(1, 128),
        "decode 1x1024": decode_batch(1, 1024),
        "decode 8x128": decode_batch(8, 128),
        "decode 32x128": decode_batch(32, 128),
        "prefill 1x128": prefill_batch(128),
        "prefill 1x1024": prefill_batch(1024),
    }
    kinds = ("products", "attention", "norms", "gate", "rotate and store")
    print("| ms | all | " + " | ".join(kinds) + " | torch and Python |\n" + "|---" * (len(kinds) + 3) + "|")
    for name, batch in cases.items():
        found: dict[str, list[float]] = defaultdict(list)
        for _ in range(4 if name.startswith("prefill") else 12):
            backend.seconds.clear()
            start = time.process_time()
            with torch.inference_mode():
                network.forward(batch, cache)
            found["all"].append(time.process_time() - start)
            for kind in kinds:
                found[kind].append(backend.seconds[kind])
        middle = {kind: 1e3 * statistics.median(values) for kind, values in found.items()}
        rest = middle["all"] - sum(middle[kind] for kind in kinds)
        print(
            f"| {name} | {middle['all']:.2f} | "
            + " | ".join(f"{middle[kind]:.2f}" for kind in kinds)
            + f" | {rest:.2f} |"
        )


if __name__ == "__main__":
    main()
