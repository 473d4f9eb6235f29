"""The compilation of every kernel for a GPU that is not there, as the host code launches it for a
model with the shapes of 8B ones.

It runs as a process of its own, `compile_kernels.py CAPABILITY`, and prints a line of JSON for each
kernel: registers, bytes of stack (spills), bytes of shared memory.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from disagg_worker.backend.cuda import decode_attention, elementwise, prefill_attention, store
from disagg_worker.backend.cuda.weight_only import WeightOnly
from disagg_worker.backend.interface import Chunk, GroupQuantizedWeight, HeadNorms, QkvShape, Rotary
from disagg_worker.model.quantization import to_fp8

CPU = torch.device("cpu")
KIND = torch.bfloat16
SHAPE = QkvShape(32, 8, 128)


class Absent:
    """The part of a driver that Triton needs before it launches anything."""

    def __init__(self, capability: int) -> None:
        self._target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def usage(cubin: bytes) -> dict[str, int]:
    """Return the registers and the stack of the machine code, read by Triton's `cuobjdump`."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True
        ).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+)", text)
    if found is None:
        raise RuntimeError(text)
    return {"registers": int(found[1]), "stack_bytes": int(found[2])}


def launches(*, fp8: bool) -> None:
    """Launch each kernel through its own host code, in the shapes for which it is made."""
    x, weight = torch.zeros(3, 4096, dtype=KIND), torch.zeros(4096, dtype=KIND)
    elementwise.rms_norm(x, weight, 1e-5)
    elementwise.rms_norm(x, weight, 1e-5, x)
    elementwise.gated(torch.zeros(3, 2 * 14336, dtype=KIND))
    positions = torch.zeros(3, dtype=torch.long)
    rotary = Rotary(torch.zeros(9, 128, dtype=KIND), torch.zeros(9, 128, dtype=KIND))
    norms = HeadNorms(torch.zeros(128, dtype=KIND), torch.zeros(128, dtype=KIND), 1e-6)
    for kind in (KIND, torch.float8_e4m3fn) if fp8 else (KIND,):
        cache = torch.zeros(4, 2, 2, 8, 16, 128, dtype=KIND).to(kind)
        for used in (None, norms):
            store.store_qkv(torch.zeros(3, 48 * 128, dtype=KIND), SHAPE, used, rotary, positions, positions, cache, 1)
        for window in (None, 4096):
            q, tables = torch.zeros(3, 32, 128, dtype=KIND), torch.zeros(3, 4, dtype=torch.long)
            decode_attention.attend(q, cache, 1, tables, positions, window, 8)
            prepared = prefill_attention.Prepared((Chunk(0, 3, 0, tables[0]),), CPU)
            prefill_attention.attend(q, cache, 1, prepared, window)
    for bits in (4, 8):
        table = torch.zeros(4096, 32)
        quantized = WeightOnly(
            GroupQuantizedWeight(bits, 128, torch.zeros(4096, 4096, dtype=torch.uint8), table, table), 128, CPU
        )
        for rows in (1, 64):
            quantized.product(torch.zeros(rows, 4096, dtype=KIND), None)
    for rows in (1, 64) if fp8 else ():
        WeightOnly(to_fp8(torch.zeros(4096, 4096)), 128, CPU).product(torch.zeros(rows, 4096, dtype=KIND), weight)


def main() -> None:
    triton.runtime.driver.set_active(Absent(int(sys.argv[1])))
    run = JITFunction.run

    def compiled(function: Any, *args: Any, **options: Any) -> Any:
        kernel = run(function, *args, **{**options, "warmup": True})
        print(
            json.dumps(
                {"kernel": function.__name__, **usage(kernel.asm["cubin"]), "shared_bytes": kernel.metadata.shared}
            ),
            flush=True,
        )
        return kernel

    JITFunction.run = compiled
    launches(fp8=int(sys.argv[1]) >= 89)


if __name__ == "__main__":
    main()
