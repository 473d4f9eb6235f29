"""Tests of the counts that penalties need: they are those of the whole, and cost what is new."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.sampler import sample
from disagg_worker.engine.token_counts import TokenCounts

PENALISED = SamplingParams(
    seed=3, max_new_tokens=100, presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.3
)
VOCAB = 300


@given(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=200), st.data())
def test_the_counts_are_those_of_the_whole(tokens: list[int], data: st.DataObject) -> None:
    prompt_tokens = data.draw(st.integers(1, len(tokens)))
    counts = TokenCounts()
    for end in sorted(data.draw(st.sets(st.integers(prompt_tokens, len(tokens))))):
        seen, (output, numbers) = counts.seen(tokens[:end]), counts.output(tokens[:end], prompt_tokens)
        assert sorted(seen.tolist()) == sorted(set(tokens[:end]))
        expected = np.unique(np.asarray(tokens[prompt_tokens:end], dtype=np.int64), return_counts=True)
        assert sorted(zip(output, numbers, strict=True)) == sorted(zip(*expected, strict=True))


@given(st.integers(0, 99), st.floats(0.01, 100), st.floats(-2, 2))
def test_a_token_is_the_same_whether_counted_at_once_or_bit_by_bit(seed: int, repeated: float, often: float) -> None:
    rng = np.random.default_rng(seed)
    params = replace(PENALISED, seed=seed, repetition_penalty=repeated, frequency_penalty=often)
    tokens, kept = rng.integers(0, VOCAB, 40).tolist(), TokenCounts()
    for _ in range(5):
        logits = rng.standard_normal(VOCAB).astype(np.float32)
        found = sample(logits, params, tokens, 20, counts=kept)
        assert found == sample(logits, params, tokens, 20)
        tokens.append(found.token)


class Read(list[int]):
    """A list that counts what is taken out of it."""

    read = 0

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        self.read += len(found) if isinstance(found, Sequence) else 1
        return found

    def __iter__(self) -> Any:
        self.read += len(self)
        return super().__iter__()


def test_a_long_prompt_is_read_once() -> None:
    tokens, counts = Read([1, 2, 3] * 10_000), TokenCounts()
    logits = np.linspace(0, 1, VOCAB, dtype=np.float32)
    for _ in range(20):
        tokens.append(sample(logits, PENALISED, tokens, 30_000, counts=counts).token)
    assert 30_000 <= tokens.read < 30_000 + 200
