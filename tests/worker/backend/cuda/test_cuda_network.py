"""Tests of the whole network with the CUDA kernels, of the batch with which a CUDA graph is
recorded, and of the compilation of every kernel for a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.worker import checkpoints
from tests.worker.backend import kernels

from disagg_worker.backend.cuda.backend import CudaBackend
from disagg_worker.backend.cuda.static_batch import BATCH_SIZES, StaticBatch, bucket
from disagg_worker.backend.interface import Backend, to_device
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.model.decoder import Decoder
from disagg_worker.model.loader import load_config
from disagg_worker.model.network import load_network

CPU = torch.device("cpu")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LENGTHS = [5, 40, 17]
SHAPES: dict[str, dict[str, Any]] = {
    "llama": {},
    "head norms": {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16},
    "biases and a window": {"attention_bias": True, "mlp_bias": True, "sliding_window": 12, "model_type": "mistral",
                            "architectures": ["MistralForCausalLM"]},
}  # fmt: skip


def network(folder: Path, backend: Backend, **options: Any) -> Decoder:
    return load_network(folder, load_config(folder), torch.float32, backend, **options).network


@pytest.mark.parametrize("shape", SHAPES)
@torch.inference_mode()
def test_logits_and_kv_are_those_of_plain_torch_with(shape: str, tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path, **SHAPES[shape])
    mine, plain = network(folder, CudaBackend(DEVICE)), network(folder, PlainBackend(DEVICE))
    dim = mine.config.head_dim
    cache, other = (kernels.cache(2, dim, torch.float32).to(DEVICE) for _ in range(2))
    prefill = replace(kernels.prefill_batch([(0, 19), (13, 6)]), token_ids=torch.arange(25))
    decode = replace(kernels.decode_batch(LENGTHS), token_ids=torch.tensor([3, 4, 5]))
    for batch in (to_device(prefill, DEVICE), to_device(decode, DEVICE)):
        torch.testing.assert_close(mine.forward(batch, cache), plain.forward(batch, other), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cache, other, rtol=1e-5, atol=1e-4)


@torch.inference_mode()
def test_places_left_over_in_a_recorded_batch_change_nothing(tmp_path: Path) -> None:
    """Compute 3 sequences with a graph of 4, then 2 with narrower tables than the first batch left
    behind.
    """
    net = network(checkpoints.make(tmp_path), PlainBackend(CPU))
    cache, other = kernels.cache(2, 8, torch.float32), kernels.cache(2, 8, torch.float32)
    static = StaticBatch(4, 16, CPU)
    for lengths in ([5, 60, 17], [9, 3]):
        batch = replace(kernels.decode_batch(lengths), token_ids=torch.arange(len(lengths)) + 3)
        static.fill(batch)
        found = net.forward(static.batch, cache)
        torch.testing.assert_close(found[: len(lengths)], net.forward(batch, other), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(cache, other, rtol=1e-5, atol=1e-5)


@given(st.integers(1, 300))
def test_a_batch_takes_the_next_larger_graph(rows: int) -> None:
    found = bucket(rows)
    assert (found is None) == (rows > BATCH_SIZES[-1])
    if found is not None:
        assert found >= rows
        assert found < max(2, 2 * rows)  # Most of its rows are used.


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
def test_every_kernel_compiles_without_spills_for_a_gpu_of_capability(capability: int) -> None:
    """Compile in bfloat16 and with an 8-bit cache, which the interpreter cannot check.

    The compiler also refuses types that the interpreter accepts.
    """
    script = Path(__file__).parent / "compile_kernels.py"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[4] / "worker"),
        "TRITON_CACHE_DIR": str(kernels.CACHE / "triton"),
    }
    made = subprocess.run(
        [sys.executable, script, str(capability)], env=environment, capture_output=True, text=True, timeout=280
    )
    assert made.returncode == 0, made.stderr
    found = [json.loads(line) for line in made.stdout.splitlines()]
    assert {k["kernel"] for k in found} == {"_rms_norm", "_gated", "_store", "_part", "_together", "_tile", "_product"}
    assert all(k["stack_bytes"] == 0 for k in found)
    assert all(k["shared_bytes"] <= 160 << 10 for k in found)
