"""Tests of every CPU kernel against plain torch, on every instruction set that this CPU has."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples
from tests.worker.backend import kernels

from disagg_worker.backend.cpu.backend import Arena, CpuBackend
from disagg_worker.backend.interface import Batch, DenseWeight, Fp8Weight, HeadNorms, QkvShape, Rotary
from disagg_worker.backend.plain import PlainBackend, dequantized

PLAIN = PlainBackend(torch.device("cpu"))
KINDS = ["float32", "bfloat16", "int8", "int4"]
# Panels are 16 or 32 wide; the shapes have whole panels, a part of one, and many and a part.
SHAPES = [(16, 32), (5, 64), (97, 96), (176, 160)]
ROWS = [1, 2, 3, 4, 5, 6, 7, 8, 13, 32, 75, 700]


@pytest.fixture(scope="module", params=kernels.LEVELS)
def cpu(request: pytest.FixtureRequest) -> CpuBackend:
    return kernels.backend(request.param)


def test_this_machine_runs_at_least_one_level() -> None:
    assert kernels.LEVELS


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Assert that two tensors are equal but for the order of float32 sums."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-5 * max(1.0, expected.abs().max().item()))


def rounded(cpu: CpuBackend, weight: object, x: torch.Tensor) -> torch.Tensor:
    """Return the inputs as this level multiplies them."""
    rounds = cpu.rounds_inputs and not (isinstance(weight, DenseWeight) and weight.weight.dtype == torch.float32)
    return x.bfloat16().float() if rounds else x


def exact(weight: object) -> torch.Tensor:
    return weight.weight.float() if isinstance(weight, DenseWeight) else dequantized(weight)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("with_bias", [False, True])
def test_linear(cpu: CpuBackend, kind: str, shape: tuple[int, int], with_bias: bool) -> None:
    weight = kernels.weight(kind, *shape)
    bias = torch.randn(shape[0], generator=torch.Generator().manual_seed(1)) if with_bias else None
    linear = cpu.linear(weight, bias)
    assert (linear.out_features, linear.in_features) == shape
    for rows in ROWS:
        x = torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(rows))
        expected = rounded(cpu, weight, x).double() @ exact(weight).double().T
        close(linear(x), (expected if bias is None else expected + bias).float())


@pytest.mark.parametrize("inputs", [1, 7, 33, 50])
@pytest.mark.parametrize("kind", ["float32", "bfloat16"])
def test_inputs_need_no_round_number(cpu: CpuBackend, kind: str, inputs: int) -> None:
    weight = kernels.weight(kind, 40, inputs)
    x = torch.randn(9, inputs)
    close(cpu.linear(weight, None)(x), rounded(cpu, weight, x) @ exact(weight).T)


@pytest.mark.parametrize("group", [5, 45])
def test_groups_need_no_even_size(cpu: CpuBackend, group: int) -> None:
    weight = kernels.weight("int4", 40, 45, group)
    x = torch.randn(9, 45)
    torch.testing.assert_close(cpu.linear(weight, None)(x), x @ exact(weight).T, rtol=1e-2, atol=0.1)


def test_fp8_weights_are_widened_to_what_bf16_can_hold(cpu: CpuBackend) -> None:
    weight = Fp8Weight(torch.randn(48, 64).to(torch.float8_e4m3fn), torch.rand(48))
    x = torch.randn(3, 64)
    torch.testing.assert_close(cpu.linear(weight, None)(x), x @ dequantized(weight).T, rtol=1e-2, atol=5e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(cpu: CpuBackend, kind: str) -> None:
    linear = cpu.linear(kernels.weight(kind, 176, 160), None)
    x = torch.randn(300, 160)
    whole = linear(x)
    alone = torch.cat([linear(row[None]) for row in x])
    assert torch.equal(whole, alone)
    for rows in range(2, 20):
        assert torch.equal(linear(x[:rows]), whole[:rows]), rows


@pytest.mark.parametrize("kind", KINDS)
def test_two_threads_compute_the_same_bits(kind: str) -> None:
    level, weight, x = kernels.LEVELS[0], kernels.weight(kind, 176, 160), torch.randn(40, 160)
    one, two = kernels.backend(level), kernels.backend(level, threads=2)
    for rows in (1, 4, 40):
        assert torch.equal(one.linear(weight, None)(x[:rows]), two.linear(weight, None)(x[:rows]))
    q, cache, batch = torch.randn(3, 4, 64), kernels.cache(2, 64, torch.bfloat16), kernels.decode_batch([5, 40, 17])
    found = [b.attend(q, q, q, batch, cache, 1, None) for b in (one, two)]
    assert torch.equal(*found)


def test_levels_that_round_alike_compute_the_same_bits() -> None:
    x = torch.randn(13, 160)
    backends = [kernels.backend(level) for level in kernels.LEVELS]
    for kind in KINDS:
        found = [
            b.linear(kernels.weight(kind, 97, 160), None)(x)
            for b in backends
            if kind == "float32" or not b.rounds_inputs
        ]
        assert all(torch.equal(found[0], other) for other in found[1:])


def test_not_a_number_stays_one(cpu: CpuBackend) -> None:
    x = torch.randn(2, 64)
    x[1, 3] = math.nan
    y = cpu.linear(kernels.weight("bfloat16", 32, 64), None)(x)
    assert not y[0].isnan().any()
    assert y[1].isnan().all()


@pytest.mark.parametrize("n", [4, 32, 100, 768])
def test_norms(cpu: CpuBackend, n: int) -> None:
    x, delta, weight = torch.randn(5, n), torch.randn(5, n), torch.rand(n)
    close(cpu.rms_norm(x, weight, 1e-5), PLAIN.rms_norm(x, weight, 1e-5))
    mine, plain = x.clone(), x.clone()
    close(cpu.add_rms_norm(mine, delta, weight, 1e-5), PLAIN.add_rms_norm(plain, delta, weight, 1e-5))
    assert torch.equal(mine, plain)


@pytest.mark.parametrize("n", [1, 48, 100])
def test_gated(cpu: CpuBackend, n: int) -> None:
    x = torch.randn(6, 2 * n) * 4
    x[0, 0], x[1, 0] = -200.0, 200.0
    close(cpu.gated(x), PLAIN.gated(x))


def tables(positions: int, head_dim: int) -> Rotary:
    angles = torch.outer(
        torch.arange(positions, dtype=torch.float32), 1 / 100 ** (torch.arange(0, head_dim, 2) / head_dim)
    )
    angles = torch.cat((angles, angles), dim=-1)
    return Rotary(angles.cos(), angles.sin())


@pytest.mark.parametrize("head_dim", [8, 12, 64, 128])
@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_store_qkv(cpu: CpuBackend, head_dim: int, normed: bool, dtype: torch.dtype) -> None:
    shape = QkvShape(6, 2, head_dim)
    norms = HeadNorms(torch.rand(head_dim), torch.rand(head_dim), 1e-6) if normed else None
    batch, qkv = kernels.prefill_batch([(0, 9), (13, 6)]), torch.randn(15, 10 * head_dim)
    mine, plain = kernels.cache(2, head_dim, dtype), kernels.cache(2, head_dim, torch.float32)
    if dtype == torch.bfloat16:
        plain = kernels.cache(2, head_dim, dtype).float()
    q, _, _ = cpu.store_qkv(qkv, shape, norms, tables(64, head_dim), batch, mine, 1)
    expected, _, _ = PLAIN.store_qkv(qkv, shape, norms, tables(64, head_dim), batch, plain, 1)
    close(q, expected)
    if dtype == torch.float32:
        close(mine, plain)
    else:  # Half a unit in the last place of bfloat16; only the batch's slots are changed.
        torch.testing.assert_close(mine.float(), plain, rtol=2**-8, atol=1e-5)
    assert torch.equal(mine[:, 0].float(), plain[:, 0])


def widened(cache: torch.Tensor) -> torch.Tensor:
    return cache.float()


@settings(max_examples=examples(30))
@given(
    lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    kv_heads=st.sampled_from([1, 2]),
    group=st.sampled_from([1, 3, 4]),
    head_dim=st.sampled_from([8, 12, 64, 80, 128]),
    window=st.sampled_from([None, 1, 7, 8, 50]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_decode_attention(
    lengths: list[int], kv_heads: int, group: int, head_dim: int, window: int | None, dtype: torch.dtype
) -> None:
    cache, batch = kernels.cache(kv_heads, head_dim, dtype), kernels.decode_batch(lengths)
    q = torch.randn(len(lengths), kv_heads * group, head_dim)
    expected = PLAIN.attend(q, q, q, batch, widened(cache), 1, window)
    for level in kernels.LEVELS:
        cpu = kernels.backend(level)
        close_attention(cpu, dtype, cpu.attend(q, q, q, batch, cache, 1, window), expected)


def close_attention(cpu: CpuBackend, dtype: torch.dtype, found: torch.Tensor, expected: torch.Tensor) -> None:
    if cpu.rounds_inputs and dtype == torch.bfloat16:  # Queries and probabilities are rounded, too.
        torch.testing.assert_close(found, expected, rtol=2**-6, atol=2**-6 * expected.abs().max().item())
    else:
        close(found, expected)


@settings(max_examples=examples(30))
@given(
    first=st.integers(0, 70),
    tokens=st.integers(2, 40),
    group=st.sampled_from([1, 2, 3, 7, 12]),
    head_dim=st.sampled_from([8, 12, 64, 80, 128]),
    window=st.sampled_from([None, 1, 7, 8, 50]),
    size=st.sampled_from([1, 3, 8, 16, 32]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_a_token_attends_alone_as_in_a_chunk(
    first: int, tokens: int, group: int, head_dim: int, window: int | None, size: int, dtype: torch.dtype
) -> None:
    """Compute each token of a chunk by itself and with others in a decode batch: the bits are those
    of the chunk, whatever came before it.
    """
    length, blocks = first + tokens, 120
    cache = kernels.cache(2, head_dim, dtype, blocks=blocks, size=size)
    q = torch.randn(tokens, 2 * group, head_dim)
    whole = kernels.prefill_batch([(first, tokens)], blocks=blocks, size=size)
    table = whole.chunks[0].table
    decode = kernels.decode_batch([length], blocks=blocks, size=size)
    lengths = torch.arange(first + 1, length + 1)
    decode = replace(decode, tables=table.repeat(tokens, 1), lengths=lengths)
    none = torch.empty(0)
    for level in kernels.LEVELS:
        cpu = kernels.backend(level)
        expected = cpu.attend(q, none, none, whole, cache, 1, window)
        assert torch.equal(cpu.attend(q, none, none, decode, cache, 1, window), expected)
        cut = tokens // 2
        for part in (slice(0, cut), slice(cut, tokens)):
            rest = replace(whole, chunks=(replace(whole.chunks[0], start=0, stop=part.stop - part.start,
                                                  first=first + part.start),))  # fmt: skip
            assert torch.equal(cpu.attend(q[part].contiguous(), none, none, rest, cache, 1, window), expected[part])


def test_a_sequence_attends_alone_as_in_a_batch(cpu: CpuBackend) -> None:
    lengths, cache = [3, 64, 200, 9], kernels.cache(2, 64, torch.bfloat16)
    batch, q = kernels.decode_batch(lengths), torch.randn(4, 6, 64)
    assert batch.tables is not None
    assert batch.lengths is not None
    together = cpu.attend(q, q, q, batch, cache, 0, None)
    for i in range(4):
        one = replace(batch, tables=batch.tables[i : i + 1].contiguous(), lengths=batch.lengths[i : i + 1])
        assert torch.equal(cpu.attend(q[i : i + 1], q, q, one, cache, 0, None)[0], together[i])


@settings(max_examples=examples(30))
@given(
    chunks=st.lists(st.tuples(st.integers(0, 50), st.integers(1, 45)), min_size=1, max_size=3),
    group=st.sampled_from([1, 3]),
    head_dim=st.sampled_from([8, 12, 64, 128]),
    window=st.sampled_from([None, 1, 9, 40]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_prefill_attention(
    chunks: list[tuple[int, int]], group: int, head_dim: int, window: int | None, dtype: torch.dtype
) -> None:
    cache, batch = kernels.cache(2, head_dim, dtype), kernels.prefill_batch(chunks)
    tokens = int(batch.positions.shape[0])
    q = torch.randn(tokens, 2 * group, head_dim)
    expected = _attended(q, batch, widened(cache), window)
    for level in kernels.LEVELS:
        none, cpu = torch.empty(0), kernels.backend(level)
        close_attention(cpu, dtype, cpu.attend(q, none, none, batch, cache, 1, window), expected)


def _attended(q: torch.Tensor, batch: Batch, cache: torch.Tensor, window: int | None) -> torch.Tensor:
    """Compute the attention row by row, from its definition."""
    kv_heads, _, head_dim = cache.shape[3:]
    rows = []
    for c in batch.chunks:
        both = cache[c.table, 1].permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, head_dim)
        for row in range(c.start, c.stop):
            end = c.first + row - c.start + 1
            seen = both[:, :, max(0, end - window) if window else 0 : end]
            heads = q[row].view(kv_heads, -1, head_dim)
            p = torch.softmax(heads @ seen[0].transpose(1, 2) / head_dim**0.5, -1)
            rows.append((p @ seen[1]).reshape(-1))
    return torch.stack(rows)


def test_matrices_share_chunks_of_memory_but_no_bytes() -> None:
    arena = Arena()
    pieces = [arena.take(n) for n in (100, 64, 1, 90 << 20, 1000)]
    spans = sorted((p.data_ptr(), p.data_ptr() + len(p)) for p in pieces)
    assert all(start % 64 == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
    assert [len(p) for p in pieces] == [100, 64, 1, 90 << 20, 1000]
    assert pieces[0].untyped_storage().data_ptr() == pieces[2].untyped_storage().data_ptr()
