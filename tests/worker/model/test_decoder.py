"""Tests of the forward pass against transformers, in every shape of the family, and for prompts
that are divided into chunks in any way.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples
from tests.worker import checkpoints
from tests.worker.runner import Fed, Runner, fed

from disagg_worker.backend.plain import PlainBackend

SHAPES: dict[str, dict[str, Any]] = {
    "grouped query heads": {},
    "as many key as query heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "untied embeddings": {"tie_word_embeddings": False},
    "head_dim of its own": {"head_dim": 12},
    "another rope base": {"rope_theta": 500000.0},
    "llama 3 rope scaling": {"rope_scaling": {**checkpoints.LLAMA3_ROPE, "rope_theta": 500000.0}},
}


def _bench(folder: Path, dtype: torch.dtype = torch.float32) -> Runner:
    return Runner(folder, PlainBackend(torch.device("cpu")), dtype=dtype)


def _reference(folder: Path, tokens: list[int]) -> torch.Tensor:
    """Return the logits of transformers at every position."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        found: torch.Tensor = model(torch.tensor([tokens])).logits[0]
    return found


TOKENS = [(7 * i * i + 3 * i) % 97 for i in range(40)]


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers_with(shape: str, tmp_path: Path) -> None:
    folder = checkpoints.make(tmp_path, **SHAPES[shape])
    expected = _reference(folder, TOKENS)
    bench = _bench(folder)
    s = fed(TOKENS[:30], 1)
    bench.prefill((s, 9))  # The first of two chunks ends within a block.
    torch.testing.assert_close(bench.prefill((s, 21))[0], expected[29], atol=1e-4, rtol=1e-4)
    for i in range(30, 40):
        s.tokens.append(TOKENS[i])
        torch.testing.assert_close(bench.decode(s)[0], expected[i], atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoints.make(tmp_path_factory.mktemp("tiny"))


@settings(max_examples=examples(40))
@given(st.lists(st.integers(1, 40), min_size=1, max_size=4), st.data())
def test_logits_do_not_depend_on_chunks_or_company(tiny: Path, lengths: list[int], data: st.DataObject) -> None:
    bench, alone = _bench(tiny), []
    for n in lengths:
        alone.append(bench.prefill((fed(TOKENS[:n], 0), n))[0])
    sequences = [fed(TOKENS[:n], 16 * i) for i, n in enumerate(lengths)]
    for s in sequences:
        s.blocks = [16 * sequences.index(s) + i for i in range(12)]
    found: dict[Fed, torch.Tensor] = {}
    while any(s.computed < len(s.tokens) for s in sequences):
        left = [s for s in sequences if s.computed < len(s.tokens)]
        work = [(s, data.draw(st.integers(1, len(s.tokens) - s.computed))) for s in left]
        logits = bench.prefill(*work)
        for row, s in enumerate([s for s, _ in work if s.computed == len(s.tokens)]):
            found[s] = logits[row]
    for s, expected in zip(sequences, alone, strict=True):
        torch.testing.assert_close(found[s], expected, atol=1e-4, rtol=1e-4)


def test_sequences_of_different_lengths_decode_together_as_alone(tiny: Path) -> None:
    together, alone = _bench(tiny), _bench(tiny)
    sequences = []
    for i, n in enumerate((1, 4, 17, 33)):
        s = fed(TOKENS[:n], 0)
        s.blocks = [16 * i + j for j in range(12)]
        together.prefill((s, n))
        s.tokens.append(TOKENS[n])
        sequences.append(s)
    logits = together.decode(*sequences)
    for row, n in enumerate((1, 4, 17, 33)):
        s = fed(TOKENS[:n], 0)
        alone.prefill((s, n))
        s.tokens.append(TOKENS[n])
        torch.testing.assert_close(logits[row], alone.decode(s)[0], atol=1e-4, rtol=1e-4)


def test_bfloat16_is_near_float32(tiny: Path) -> None:
    exact, rough = _bench(tiny), _bench(tiny, dtype=torch.bfloat16)
    a = exact.prefill((fed(TOKENS, 1), 40))[0]
    b = rough.prefill((fed(TOKENS, 1), 40))[0]
    assert torch.nn.functional.cosine_similarity(a, b, dim=0) > 0.999


def test_the_bytes_of_a_view_are_the_keys_and_values_of_its_block(tiny: Path) -> None:
    bench = _bench(tiny)
    bench.prefill((fed(TOKENS, 1), 40))
    seen = torch.frombuffer(bench.memory.view(1, 6), dtype=torch.float32).view(2, 2, 4, 8)
    assert torch.equal(seen, bench.memory.tensor[6, 1])
