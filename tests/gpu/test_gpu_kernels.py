"""Tests of the compiled kernels, in bfloat16 and with an 8-bit cache, in the shapes of an 8B model,
and of the recorded decode step.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tests.worker import checkpoints
from tests.worker.backend import kernels

from disagg_worker.backend.cuda import CudaBackend
from disagg_worker.backend.interface import GroupQuantizedWeight, to_device
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.model.loader import load_config
from disagg_worker.model.network import load_network
from disagg_worker.model.quantization import quantize, to_fp8

DEVICE = torch.device("cuda", 0)
HEADS, KV_HEADS, DIM = 32, 8, 128


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, torch.bfloat16)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("window", [None, 100])
@torch.inference_mode()
def test_attention_against_float32(kind: torch.dtype, window: int | None) -> None:
    mine, plain = CudaBackend(DEVICE), PlainBackend(DEVICE)
    cache = (kernels.cache(KV_HEADS, DIM, torch.float32, blocks=600, size=16) / 2).to(DEVICE, kind)
    wide = cache.float()
    lengths = [1, 15, 16, 17, 500, 1024, 2000]
    decode = to_device(kernels.decode_batch(lengths, blocks=600, size=16), DEVICE)
    prefill = to_device(kernels.prefill_batch([(0, 700), (333, 200), (64, 1)], blocks=600, size=16), DEVICE)
    # The plain reference takes the keys of a sequence's first chunk from its arguments, so only
    # other chunks are compared.
    for batch in (decode, replace(prefill, chunks=prefill.chunks[1:])):
        q = rand(len(batch.token_ids), HEADS, DIM)
        rows = slice(0, None) if batch is decode else slice(700, None)
        found = mine.attend(q, q, q, batch, cache, 1, window)[rows]
        expected = plain.attend(q.float(), q.float(), q.float(), batch, wide, 1, window)
        assert error(found, expected) < 0.01


@pytest.mark.parametrize("rows", [1, 16, 64, 200])
@pytest.mark.parametrize("bits", [4, 8, 0])
@torch.inference_mode()
def test_few_bits_against_float32(bits: int, rows: int) -> None:
    full, x = rand(4096, 2048).cpu(), rand(rows, 2048, seed=1)
    weight = to_fp8(full) if bits == 0 else quantize(full, bits, 128)
    assert bits == 0 or isinstance(weight, GroupQuantizedWeight)
    found = CudaBackend(DEVICE).linear(weight, None)(x)
    assert error(found, PlainBackend(DEVICE).linear(weight, None)(x.float())) < 0.01


@torch.inference_mode()
def test_a_recorded_step_is_the_step_itself(tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path, head_dim=64)
    network = load_network(folder, load_config(folder), torch.float32, CudaBackend(DEVICE)).network
    recorded, plain = (kernels.cache(2, 64, torch.float32).to(DEVICE) for _ in range(2))
    program = network.backend.decode_program(network, recorded)
    assert program is not None
    for lengths in ([5, 40, 17], [80, 9], [1, 2, 3, 4, 5, 6, 7, 8, 9]):
        batch = replace(kernels.decode_batch(lengths), token_ids=torch.arange(len(lengths)) + 3)
        for _ in range(2):  # It is recorded, then replayed.
            found = program(batch, recorded).clone()
            torch.testing.assert_close(found, network.forward(to_device(batch, DEVICE), plain), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(recorded, plain, rtol=1e-4, atol=1e-4)
