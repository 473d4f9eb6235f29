"""Tests of every CUDA kernel against plain torch, in many shapes.

Without a GPU they run in Triton's interpreter, so the shapes are small. They use float16 and
float32, since the interpreter multiplies bfloat16 matrices wrongly (it takes their bits for
integers).
"""

from __future__ import annotations

import pytest
import torch
from tests.worker.backend import kernels

from disagg_worker.backend.cuda import decode_attention
from disagg_worker.backend.cuda.backend import CudaBackend
from disagg_worker.backend.cuda.prefill_attention import tiles_of
from disagg_worker.backend.interface import Batch, DenseWeight, Fp8Weight, HeadNorms, QkvShape, Rotary, to_device
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.model.quantization import quantize, to_fp8

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MINE, PLAIN = CudaBackend(DEVICE), PlainBackend(DEVICE)
TOLERANCE = {torch.float32: 1e-5, torch.float16: 3e-3}
DTYPES = list(TOLERANCE)


def rand(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=generator).to(DEVICE, dtype)


def near(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "n"), [(1, 32), (5, 96), (3, 704)])
def test_norms_and_the_gate(rows: int, n: int, dtype: torch.dtype) -> None:
    x, delta, weight = rand(rows, n, dtype=dtype), rand(rows, n, dtype=dtype, seed=1), rand(n, dtype=dtype, seed=2)
    near(MINE.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5), dtype)
    mine, plain = x.clone(), x.clone()
    near(MINE.add_rms_norm(mine, delta, weight, 1e-5), PLAIN.add_rms_norm(plain, delta, weight, 1e-5), dtype)
    assert torch.equal(mine, plain)
    both = rand(rows, 2 * n, dtype=dtype)
    near(MINE.gated(both), PLAIN.gated(both), dtype)


def test_no_rows_are_no_fault() -> None:
    assert MINE.rms_norm(rand(0, 32), rand(32), 1e-5).shape == (0, 32)
    assert MINE.gated(rand(0, 64)).shape == (0, 32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 8), (8, 1, 64), (2, 2, 80), (4, 1, 128)])
@pytest.mark.parametrize("normed", [False, True])
def test_q_k_and_v_are_normed_turned_and_stored(
    heads: int, kv_heads: int, dim: int, normed: bool, dtype: torch.dtype
) -> None:
    shape, tokens = QkvShape(heads, kv_heads, dim), 5
    norms = HeadNorms(rand(dim, dtype=dtype, seed=3), rand(dim, dtype=dtype, seed=4), 1e-6) if normed else None
    rotary = Rotary(rand(50, dim, dtype=dtype, seed=5), rand(50, dim, dtype=dtype, seed=6))
    batch = Batch(
        torch.zeros(tokens, dtype=torch.long),
        torch.tensor([0, 7, 49, 3, 12], device=DEVICE),
        torch.tensor([5, 0, 39, 17, 8], device=DEVICE),
        torch.arange(tokens),
    )
    qkv = rand(tokens, (heads + 2 * kv_heads) * dim, dtype=dtype)
    mine, plain = (kernels.cache(kv_heads, dim, dtype, blocks=5).to(DEVICE) for _ in range(2))
    q = MINE.store_qkv(qkv, shape, norms, rotary, batch, mine, 1)[0]
    expected = PLAIN.store_qkv(qkv, shape, norms, rotary, batch, plain, 1)[0]
    near(q, expected, dtype)
    near(mine, plain, dtype)
    untouched = kernels.cache(kv_heads, dim, dtype, blocks=5).to(DEVICE)
    assert torch.equal(mine[:, 0], untouched[:, 0])


def _decode(
    heads: int, kv_heads: int, dim: int, dtype: torch.dtype, lengths: list[int], window: int | None, splits: int
) -> None:
    batch = to_device(kernels.decode_batch(lengths), DEVICE)
    assert batch.tables is not None
    assert batch.lengths is not None
    cache, q = kernels.cache(kv_heads, dim, dtype).to(DEVICE), rand(len(lengths), heads, dim, dtype=dtype)
    found = decode_attention.attend(q, cache, 1, batch.tables, batch.lengths, window, splits)
    near(found, PLAIN.attend(q, q, q, batch, cache, 1, window), dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 4, 8), (8, 2, 64), (6, 1, 80), (4, 1, 128)])
def test_decode_attention_over_head_shapes(heads: int, kv_heads: int, dim: int, dtype: torch.dtype) -> None:
    _decode(heads, kv_heads, dim, dtype, [1, 8, 9, 130], None, 2)


@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("window", [None, 1, 20, 64, 300])
def test_decode_attention_over_windows_and_splits(window: int | None, splits: int) -> None:
    _decode(4, 2, 16, torch.float32, [1, 2, 63, 64, 65, 129, 300], window, splits)


def test_a_place_that_was_never_written_does_not_poison_the_others() -> None:
    """Check that a NaN after the end of a sequence, or in a block of another one, has no effect."""
    batch = to_device(kernels.decode_batch([9]), DEVICE)
    assert batch.tables is not None
    assert batch.lengths is not None
    cache, q = kernels.cache(2, 16, torch.float32).to(DEVICE), rand(1, 4, 16)
    expected = PLAIN.attend(q, q, q, batch, cache, 0, None)
    cache[batch.tables[0, 1], :, :, :, 1:] = torch.nan
    cache[[b for b in range(40) if b not in batch.tables[0].tolist()]] = torch.nan
    found = decode_attention.attend(q, cache, 0, batch.tables, batch.lengths, None, 2)
    near(found, expected, torch.float32)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("window", [None, 1, 20, 64])
@pytest.mark.parametrize(("heads", "kv_heads", "dim"), [(4, 2, 16), (2, 1, 80)])
def test_prefill_attention(heads: int, kv_heads: int, dim: int, window: int | None, dtype: torch.dtype) -> None:
    batch = to_device(kernels.prefill_batch([(0, 150), (65, 3), (13, 1), (1, 64)]), DEVICE)
    cache = kernels.cache(kv_heads, dim, dtype).to(DEVICE)
    tokens = len(batch.token_ids)
    q = rand(tokens, heads, dim, dtype=dtype)
    k, v = rand(tokens, kv_heads, dim, dtype=dtype, seed=1), rand(tokens, kv_heads, dim, dtype=dtype, seed=2)
    cache[batch.slots // 8, 1, 0, :, batch.slots % 8] = k
    cache[batch.slots // 8, 1, 1, :, batch.slots % 8] = v
    near(MINE.attend(q, k, v, batch, cache, 1, window), PLAIN.attend(q, k, v, batch, cache, 1, window), dtype)


def test_tiles_cover_every_token_once() -> None:
    batch = kernels.prefill_batch([(0, 150), (65, 3), (13, 1), (1, 64)])
    rows = [r for start, count, _, _ in tiles_of(batch.chunks).tolist() for r in range(start, start + count)]
    assert sorted(rows) == list(range(218))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("outputs", "inputs", "group"), [(40, 128, 32), (33, 256, 128), (16, 96, 96), (70, 192, 64)])
@pytest.mark.parametrize("rows", [1, 20, 130])
def test_integers(bits: int, outputs: int, inputs: int, group: int, rows: int, dtype: torch.dtype) -> None:
    weight = quantize(rand(outputs, inputs).cpu(), bits, group)
    bias = rand(outputs, dtype=dtype, seed=9)
    x = rand(rows, inputs, dtype=dtype, seed=7)
    mine, plain = MINE.linear(weight, bias), PLAIN.linear(weight, bias)
    found, expected = mine(x), plain(x)
    assert float((found - expected).norm() / expected.norm()) < TOLERANCE[dtype]
    assert mine.weight_bytes < outputs * inputs * bits / 8 * 1.5 + 8 * outputs * inputs / group


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("rows", [1, 20, 130])
def test_floats_of_8_bits(rows: int, dtype: torch.dtype) -> None:
    weight, x = to_fp8(rand(40, 128).cpu()), rand(rows, 128, dtype=dtype)
    assert isinstance(weight, Fp8Weight)
    found, expected = MINE.linear(weight, None)(x), PLAIN.linear(weight, None)(x)
    assert float((found - expected).norm() / expected.norm()) < TOLERANCE[dtype]


def test_floats_and_groups_that_the_kernel_can_not_take() -> None:
    x = rand(3, 48)
    dense = DenseWeight(rand(10, 48))
    near(MINE.linear(dense, None)(x), PLAIN.linear(dense, None)(x), torch.float32)
    odd = quantize(rand(10, 48).cpu(), 4, 24)
    near(MINE.linear(odd, None)(x), PLAIN.linear(odd, None)(x), torch.float32)
