"""Tests of the decode step in one call against the network layer by layer and plain torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.worker import checkpoints
from tests.worker.backend import kernels

from disagg_worker.backend.interface import Backend, Batch
from disagg_worker.backend.plain import PlainBackend
from disagg_worker.backend.row_by_row import RowByRowBackend
from disagg_worker.model.decoder import Decoder
from disagg_worker.model.loader import load_config
from disagg_worker.model.network import load_network
from disagg_worker.values.choices import Quantization

WINDOWED: dict[str, Any] = {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 9}
LENGTHS = [5, 40, 17, 64, 1, 33, 9, 80]


def network(folder: Path, backend: Backend, dtype: torch.dtype) -> Decoder:
    return load_network(folder, load_config(folder), dtype, backend).network


def decode_batch() -> Batch:
    return replace(kernels.decode_batch(LENGTHS), token_ids=torch.tensor([3 * i + 1 for i in range(len(LENGTHS))]))


@pytest.mark.parametrize("level", kernels.LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head_dim", [8, 64])
@pytest.mark.parametrize("threads", [1, 2])
@torch.inference_mode()
def test_one_call_computes_the_bits_of_the_layers(
    tmp_path: Path, level: str, dtype: torch.dtype, head_dim: int, threads: int
) -> None:
    folder = checkpoints.make(tmp_path, head_dim=head_dim, tie_word_embeddings=False)
    net = network(folder, kernels.backend(level, threads), dtype)
    layered, program = (kernels.cache(2, head_dim, dtype) for _ in range(2))
    run = net.backend.decode_program(net, program)
    assert run is not None
    batch = decode_batch()
    expected = net.forward(batch, layered)
    assert torch.equal(run(batch, program), expected)
    assert torch.equal(program, layered)
    assert torch.equal(run(batch, program), expected)  # Nothing is left over from the first step.


@pytest.mark.parametrize("level", kernels.LEVELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_sequence_decodes_alone_as_in_a_batch(tmp_path: Path, level: str, dtype: torch.dtype) -> None:
    net = network(checkpoints.make(tmp_path), kernels.backend(level), dtype)
    cache = kernels.cache(2, 8, dtype)
    run = net.backend.decode_program(net, cache)
    assert run is not None
    batch = decode_batch()
    assert batch.tables is not None
    assert batch.lengths is not None
    together = run(batch, cache)
    for i in range(len(LENGTHS)):
        part = slice(i, i + 1)
        one = Batch(
            batch.token_ids[part],
            batch.positions[part],
            batch.slots[part],
            batch.last[:1],
            tables=batch.tables[part].contiguous(),
            lengths=batch.lengths[part],
        )
        assert torch.equal(run(one, cache)[0], together[i])


@pytest.mark.parametrize("level", kernels.LEVELS)
@torch.inference_mode()
def test_prefill_and_decode_write_the_same_kv(tmp_path: Path, level: str) -> None:
    """Compute one token at a time by prefill and by decode: the same kernels run in the same order
    and write the same bytes into the cache.
    """
    net = network(checkpoints.make(tmp_path), kernels.backend(level), torch.bfloat16)
    by_prefill, by_decode = kernels.cache(2, 8, torch.bfloat16), kernels.cache(2, 8, torch.bfloat16)
    run = net.backend.decode_program(net, by_decode)
    assert run is not None
    for at in range(12):
        decode = kernels.decode_batch([at + 1])
        prefill = kernels.prefill_batch([(at, 1)])
        table = prefill.chunks[0].table
        ids, slots = torch.tensor([7 * at % 97]), table[at // 8 : at // 8 + 1] * 8 + at % 8
        net.forward(replace(prefill, token_ids=ids), by_prefill)
        run(replace(decode, token_ids=ids, slots=slots, tables=table[None].contiguous()), by_decode)
    assert torch.equal(by_prefill, by_decode)


def check_tokens_are_the_same(
    folder: Path, backend: Backend, quantization: Quantization, dtype: torch.dtype, tokens: int
) -> None:
    """Decode one token at a time, and prefill the same tokens in one chunk and in several ones: all
    logits and the KV have the same bits.
    """
    checkpoints.make(folder, head_dim=64, hidden_size=96, intermediate_size=96, **WINDOWED)
    net = load_network(folder, load_config(folder), dtype, backend, quantization=quantization).network
    decoded = kernels.cache(2, 64, dtype)
    run = net.backend.decode_program(net, decoded) or net.forward
    table = kernels.prefill_batch([(0, tokens)]).chunks[0].table
    ids, logits = torch.tensor([7 * i * i % 97 for i in range(tokens)]), []
    for at in range(tokens):
        batch, slots = kernels.decode_batch([at + 1]), table[at // 8 : at // 8 + 1] * 8 + at % 8
        one = replace(batch, token_ids=ids[at : at + 1], slots=slots, tables=table[None].contiguous())
        logits.append(run(one, decoded)[0])
    for parts in ([tokens], [1, tokens - 1], [tokens // 2 + 1, tokens - tokens // 2 - 1], [8, 1, tokens - 9]):
        prefilled, first = kernels.cache(2, 64, dtype), 0
        for n in parts:
            batch = kernels.prefill_batch([(first, n)])
            chunk = replace(batch.chunks[0], table=table[: -(-(first + n) // 8)].contiguous())
            slots = table[batch.positions // 8] * 8 + batch.positions % 8
            whole = replace(batch, token_ids=ids[first : first + n], slots=slots, chunks=(chunk,))
            assert torch.equal(net.forward(whole, prefilled), torch.stack(logits[first : first + n]))
            first += n
        assert torch.equal(prefilled, decoded)


@pytest.mark.parametrize("level", kernels.LEVELS)
@pytest.mark.parametrize("quantization", ["none", "int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_a_token_has_the_same_logits_and_kv_decoded_and_prefilled(
    tmp_path: Path, level: str, quantization: Quantization, dtype: torch.dtype
) -> None:
    check_tokens_are_the_same(tmp_path, kernels.backend(level), quantization, dtype, 30)


@pytest.mark.parametrize("quantization", ["none", "int8", "fp8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.inference_mode()
def test_plain_torch_row_by_row_computes_the_same_token_decoded_and_prefilled(
    tmp_path: Path, quantization: Quantization, dtype: torch.dtype
) -> None:
    check_tokens_are_the_same(tmp_path, RowByRowBackend(torch.device("cpu")), quantization, dtype, 20)


@torch.inference_mode()
def test_row_by_row_is_plain_torch_but_for_rounding(tmp_path: Path) -> None:
    folder, cpu = checkpoints.make(tmp_path, head_dim=8, **WINDOWED), torch.device("cpu")
    plain, rows = (network(folder, kind(cpu), torch.float32) for kind in (PlainBackend, RowByRowBackend))
    prompts = replace(kernels.prefill_batch([(0, 19), (13, 6)]), token_ids=torch.arange(25))
    for batch in (decode_batch(), prompts, replace(prompts, last=torch.tensor([], dtype=torch.long))):
        cache, other = kernels.cache(2, 8, torch.float32), kernels.cache(2, 8, torch.float32)
        torch.testing.assert_close(rows.forward(batch, cache), plain.forward(batch, other), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cache, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("level", kernels.LEVELS)
@pytest.mark.parametrize("head_dim", [8, 64])
@torch.inference_mode()
def test_logits_are_those_of_plain_torch(tmp_path: Path, level: str, head_dim: int) -> None:
    folder = checkpoints.make(tmp_path, head_dim=head_dim)
    mine = network(folder, kernels.backend(level), torch.float32)
    plain = network(folder, PlainBackend(torch.device("cpu")), torch.float32)
    for batch in (decode_batch(), replace(kernels.prefill_batch([(0, 19), (13, 6)]), token_ids=torch.arange(25))):
        cache, other = kernels.cache(2, head_dim, torch.float32), kernels.cache(2, head_dim, torch.float32)
        torch.testing.assert_close(mine.forward(batch, cache), plain.forward(batch, other), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(cache, other, rtol=1e-5, atol=1e-4)
