"""Tests of sampling, which is a pure function of logits, parameters, tokens and position."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.profiles import examples

from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine import sampler
from disagg_worker.engine.sampler import Row, Sampled, noise, sample_rows
from disagg_worker.engine.token_counts import TokenCounts

VOCAB = 32
PLAIN = SamplingParams(seed=7, max_new_tokens=100)
GREEDY = replace(PLAIN, temperature=0.0)

params = st.builds(
    SamplingParams,
    seed=st.integers(0, 2**63 - 1),
    max_new_tokens=st.just(100),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([0.05, 0.5, 0.9, 1.0]),
    top_k=st.sampled_from([0, 1, 3, 31, 1000]),
    min_p=st.sampled_from([0.0, 0.1, 1.0]),
    presence_penalty=st.sampled_from([-2.0, 0.0, 1.5]),
    frequency_penalty=st.sampled_from([-1.0, 0.0, 0.7]),
    repetition_penalty=st.sampled_from([0.8, 1.0, 1.3]),
    logit_bias=st.sampled_from([(), ((3, -100.0), (5, 4.0))]),
    logprobs=st.sampled_from([None, 0, 5]),
    stop_token_ids=st.sampled_from([(), (0,)]),
    min_tokens=st.sampled_from([0, 4]),
)
tokens = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=12)


def _logits(seed: int) -> torch.Tensor:
    return torch.randn(VOCAB, generator=torch.Generator().manual_seed(seed)) * 3


def sample(logits: torch.Tensor, params: SamplingParams, tokens: list[int] | Any, prompt_tokens: int) -> Sampled:
    return sampler.sample(logits.numpy(), params, tokens, prompt_tokens)


def _kept(logits: list[float], **change: Any) -> set[int]:
    """Return the tokens that are drawn over many positions."""
    wide = torch.tensor(logits)
    return {sample(wide, replace(PLAIN, **change), [0] * n, 1).token for n in range(1, 400)}


@settings(max_examples=examples(60))
@given(st.lists(st.tuples(params, tokens, st.integers(0, 99)), min_size=1, max_size=6))
def test_a_row_draws_the_same_token_alone_and_in_any_batch(
    requests: list[tuple[SamplingParams, list[int], int]],
) -> None:
    rows = [Row(p, t, max(1, len(t) // 2)) for p, t, _ in requests]
    logits = torch.stack([_logits(s) for _, _, s in requests])
    together = sample_rows(logits, rows)
    alone = [sample(logits[i], r.params, r.tokens, r.prompt_tokens) for i, r in enumerate(rows)]
    assert together == alone
    assert sample_rows(logits.flip(0), rows[::-1]) == alone[::-1]


@given(st.integers(0, 2**63 - 1), st.integers(0, 100_000), st.integers(1, 200))
def test_the_noise_belongs_to_seed_position_and_token(seed: int, position: int, vocab: int) -> None:
    values = noise(seed, position, 200)
    assert (values > 0).all()
    assert (values < 1).all()
    assert np.array_equal(noise(seed, position, vocab), values[:vocab])
    assert not np.isin(noise(seed, position + 1, 200), values).any()
    assert not np.isin(noise(seed ^ 1, position, 200), values).any()


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_a_forbidden_token_is_never_drawn(monkeypatch: pytest.MonkeyPatch, number: float) -> None:
    """Draw the least and the largest number, the edges of the logarithm."""

    class Constant:
        def random(self, n: int) -> Any:
            return np.full(n, number)

    monkeypatch.setattr(np.random, "Generator", lambda _: Constant())
    allowed = np.array([False, True, False])
    logits = np.array([9.0, 1.0, 9.0], dtype=np.float32)
    assert sampler.sample(logits, PLAIN, [1], 1, allowed).token == 1


@settings(max_examples=examples(60))
@given(params, tokens, st.integers(0, 99), st.lists(st.integers(0, VOCAB - 1), max_size=6), st.floats(0.01, 9.0))
def test_what_loses_may_lose_by_more(
    change: SamplingParams, tokens: list[int], seed: int, losers: list[int], by: float
) -> None:
    """Make tokens that were not drawn less likely: without a filter, the same one is drawn."""
    unfiltered = replace(change, top_p=1.0, top_k=0, min_p=0.0, logprobs=None)
    logits = _logits(seed)
    drawn = sample(logits, unfiltered, tokens, 1).token
    for loser in set(losers) - {drawn, *tokens}:
        logits[loser] -= by
    assert sample(logits, unfiltered, tokens, 1).token == drawn


@settings(max_examples=examples(60))
@given(params, tokens, st.integers(0, 99))
def test_rounding_changes_only_what_is_nearly_tied(params: SamplingParams, tokens: list[int], seed: int) -> None:
    """Move each logit by up to a hundred-thousandth: if another token is drawn, the two were about
    that close, or a filter keeps another set.
    """
    logits, prompt_tokens = _logits(seed), max(1, len(tokens) // 2)
    moved = logits + (torch.rand(VOCAB, generator=torch.Generator().manual_seed(seed + 100)) - 0.5) * 2e-5
    before = sample(logits, params, tokens, prompt_tokens).token
    after = sample(moved, params, tokens, prompt_tokens).token
    if before == after:
        return
    filtered = params.top_k > 0 or params.top_p < 1.0 or params.min_p > 0.0
    adjusted = sampler._penalised(logits.numpy(), params, tokens, prompt_tokens, None, TokenCounts()).astype(np.float64)
    gumbel = -np.log(-np.log(noise(params.seed, len(tokens), VOCAB)))
    sums = adjusted / max(params.temperature, 1e-5) + gumbel
    assert filtered or abs(sums[before] - sums[after]) < 1e-3


def test_the_logits_are_left_as_they_were() -> None:
    logits = _logits(1)
    before = logits.clone()
    sample(logits, replace(PLAIN, repetition_penalty=1.3, logit_bias=((1, 5.0),), presence_penalty=1.0), [1, 2, 3], 1)
    assert torch.equal(logits, before)


# The 99.99 % points of chi-square, by degrees of freedom: a correct sampler fails one such run with
# a fixed seed in 10,000, and this one is known to pass.
_CHI_SQUARE = {7: 29.9, 3: 21.1}


def _chi_square(counts: np.ndarray[Any, Any], expected: np.ndarray[Any, Any]) -> float:
    return float((((counts - expected) ** 2) / expected).sum())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_distributed_as_softmax_says(temperature: float) -> None:
    logits = torch.tensor([0.0, 0.5, 1.0, -1.0, 0.2, 0.9, -0.4, 0.1])
    n, rng = 3000, replace(PLAIN, temperature=temperature)
    drawn = [sample(logits, replace(rng, seed=i), [0] * (1 + i % 5), 1).token for i in range(n)]
    expected = torch.softmax(logits.double() / temperature, -1).numpy() * n
    assert _chi_square(np.bincount(drawn, minlength=8), expected) < _CHI_SQUARE[7]


def test_a_filter_keeps_the_proportions_of_what_it_leaves() -> None:
    logits, n = torch.tensor([2.0, 1.5, 1.0, 0.5, -3.0, -3.0]), 3000
    drawn = [sample(logits, replace(PLAIN, top_k=4), [0] * (i + 1), 1).token for i in range(n)]
    expected = torch.softmax(logits[:4].double(), -1).numpy() * n
    assert max(drawn) <= 3
    assert _chi_square(np.bincount(drawn, minlength=4), expected) < _CHI_SQUARE[3]


@pytest.mark.parametrize(
    "change",
    [{"top_p": 0.3}, {"top_p": 0.999}, {"min_p": 0.2}, {"min_p": 0.999}, {"min_p": 0.9, "top_p": 0.9}],
    ids=str,
)
@pytest.mark.parametrize("scale", [0.01, 4.0], ids=["flat", "steep"])
def test_over_a_large_vocabulary_the_filters_keep_what_a_full_sort_says(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], scale: float
) -> None:
    logits = torch.randn(5000, generator=torch.Generator().manual_seed(1)) * scale

    def draw(few: int) -> list[int]:
        monkeypatch.setattr(sampler, "_FEW", few)
        return [sample(logits, replace(PLAIN, seed=i, **change), [1], 1).token for i in range(40)]

    assert draw(64) == draw(5000)


FLAT = [math.log(p) for p in (0.4, 0.3, 0.2, 0.06, 0.04)]


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({}, {0, 1, 2, 3, 4}),
        ({"top_k": 2}, {0, 1}),
        ({"top_k": 100}, {0, 1, 2, 3, 4}),
        ({"top_p": 0.35}, {0}),
        ({"top_p": 0.5}, {0, 1}),
        ({"top_p": 0.85}, {0, 1, 2}),
        ({"top_p": 1e-9}, {0}),
        ({"min_p": 0.4}, {0, 1, 2}),
        ({"min_p": 1.0}, {0}),
        ({"top_k": 3, "top_p": 0.5}, {0, 1}),
        ({"logit_bias": ((0, -100.0),), "top_k": 1}, {1}),
        ({"logit_bias": ((4, 100.0),)}, {4}),
        ({"stop_token_ids": (0, 1, 2), "min_tokens": 1000}, {3, 4}),
    ],
    ids=str,
)
def test_only_the_tokens_that_the_filters_leave_come_out(change: dict[str, Any], kept: set[int]) -> None:
    assert _kept(FLAT, **change) == kept


@pytest.mark.parametrize(
    ("change", "prompt_tokens", "expected"),
    [
        ({}, 1, 0),
        ({"presence_penalty": 1.0}, 1, 1),
        ({"presence_penalty": 1.0}, 3, 0),
        ({"frequency_penalty": 0.4}, 1, 1),
        ({"frequency_penalty": 0.4}, 2, 0),
        ({"repetition_penalty": 1.5}, 3, 1),
    ],
    ids=[
        "the likeliest without a penalty",
        "presence counts what was put out",
        "presence leaves the prompt alone",
        "frequency counts each time",
        "frequency once is too little here",
        "repetition counts the prompt too",
    ],
)
def test_penalties_change_the_greedy_choice_as_documented(
    change: dict[str, Any], prompt_tokens: int, expected: int
) -> None:
    logits = torch.tensor([2.0, 1.5, 1.0])
    assert sample(logits, replace(GREEDY, **change), [2, 0, 0], prompt_tokens).token == expected


def test_a_repeated_token_with_a_negative_logit_becomes_less_likely() -> None:
    assert sample(torch.tensor([-1.0, -1.1]), replace(GREEDY, repetition_penalty=2.0), [0], 1).token == 1


def test_log_probabilities_are_those_of_the_model_before_temperature_and_filters() -> None:
    logits = _logits(3)
    logs = torch.log_softmax(logits, -1)
    found = sample(logits, replace(PLAIN, temperature=0.2, top_k=1, logprobs=3), [1], 1)
    assert found.logprob == pytest.approx(float(logs[found.token]))
    assert [t for t, _ in found.top_logprobs] == logs.topk(3).indices.tolist()
    assert sample(logits, replace(PLAIN, logprobs=0), [1], 1).top_logprobs == ()
    assert sample(logits, PLAIN, [1], 1).logprob is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_fail_their_own_row_only(bad: float) -> None:
    logits = torch.stack([_logits(1), _logits(2)])
    logits[1, 4] = bad
    rows = [Row(GREEDY, [1], 1), Row(PLAIN, [1], 1)]
    good, failed = sample_rows(logits, rows)
    assert good == Sampled(int(logits[0].argmax()), None, ())
    assert isinstance(failed, ArithmeticError)


@pytest.mark.parametrize("params", [PLAIN, GREEDY])
def test_where_no_token_may_follow_none_does(params: SamplingParams) -> None:
    forbidden = replace(params, stop_token_ids=(0, 1, 2), min_tokens=9)
    [good, failed] = sample_rows(torch.ones(2, 3), [Row(params, [1], 1), Row(forbidden, [1], 1)])
    assert isinstance(good, Sampled)
    assert isinstance(failed, ArithmeticError)


def test_min_tokens_holds_the_stop_token_back_for_greedy_rows_too() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0]])
    row = Row(replace(GREEDY, stop_token_ids=(0,), min_tokens=2), [1, 1], 1)
    assert sample_rows(logits, [row]) == [Sampled(1, None, ())]
    assert sample_rows(logits, [replace(row, tokens=[1, 1, 1])]) == [Sampled(0, None, ())]
