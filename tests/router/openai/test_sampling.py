"""Tests that generated tokens fit the model, and that workers get OpenAI's defaults."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.errors import ApiError
from disagg_router.openai.sampling import check_prompt, most_chars, sampling_of
from disagg_router.openai.schema import ChatRequest, CompletionRequest, parse
from disagg_router.workers.catalogue import Model
from disagg_router.workers.worker_info import Identity

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PLAIN: dict[str, Any] = {"model": "m", "prompt": "hi"}
MODEL = Model(Identity("m", "D"), 100, 2048, (0,))


def test_a_prompt_that_does_not_fit_is_refused_with_the_limit_named() -> None:
    for prompt, wanted, code in (
        ([], None, "empty_prompt"),
        ([1] * 100, None, "context_length_exceeded"),
        ([2048], None, "invalid_value"),
        ([1] * 50, 51, "context_length_exceeded"),
    ):
        with pytest.raises(ApiError) as caught:
            check_prompt(prompt, wanted, None, MODEL)
        assert (caught.value.status, caught.value.code) == (400, code)
        assert prompt == [] or "100" in str(caught.value) or "2048" in str(caught.value)


@given(st.integers(1, 99), st.none() | st.integers(1, 200), st.none() | st.integers(1, 200))
def test_what_may_be_generated_always_fits_the_context(n: int, wanted: int | None, default: int | None) -> None:
    try:
        allowed = check_prompt([1] * n, wanted, default, MODEL)
    except ApiError:
        assert wanted is not None
        assert n + wanted > 100
        return
    assert 1 <= allowed <= 100 - n
    assert wanted is None or allowed == wanted


def test_min_tokens_and_the_end_token_are_as_asked() -> None:
    request = parse(CompletionRequest, PLAIN | {"min_tokens": 50, "ignore_eos": True, "logit_bias": {"5": -100}})
    sampling = sampling_of(request, MODEL, 10, 1)
    assert (sampling["min_tokens"], sampling["stop_token_ids"], sampling["logit_bias"]) == (10, [], [[5, -100.0]])
    with pytest.raises(ApiError, match="logit_bias"):
        sampling_of(parse(CompletionRequest, PLAIN | {"logit_bias": {"2048": 1}}), MODEL, 10, 1)


def test_what_is_not_asked_for_has_openais_default() -> None:
    assert sampling_of(parse(ChatRequest, CHAT), MODEL, 10, 7) == {
        "seed": 7,
        "max_new_tokens": 10,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "logit_bias": [],
        "logprobs": None,
        "stop_token_ids": [0],
        "min_tokens": 0,
        "structured": None,
    }


def test_what_is_asked_for_reaches_the_worker() -> None:
    asked = {
        "temperature": 0.0,
        "top_p": 0.5,
        "top_k": 40,
        "min_p": 0.1,
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "repetition_penalty": 1.2,
        "logprobs": 2,
        "min_tokens": 3,
    }
    sampling = sampling_of(parse(CompletionRequest, PLAIN | asked), MODEL, 10, 7)
    assert {name: sampling[name] for name in asked} == asked
    assert sampling_of(parse(CompletionRequest, PLAIN | {"top_k": -1}), MODEL, 10, 7)["top_k"] == 0
    formed = sampling_of(parse(ChatRequest, CHAT | {"structured_outputs": {"regex": "a+"}}), MODEL, 10, 7)
    assert formed["structured"] == {"kind": "regex", "value": "a+"}


@pytest.mark.parametrize(("context", "chars"), [(100, 1 << 16), (2048, 1 << 16), (2049, 65_568), (1 << 20, 32 << 20)])
def test_a_text_may_have_many_characters_for_each_token_of_the_context(context: int, chars: int) -> None:
    assert most_chars(Model(Identity("m", "D"), context, 2048, (0,))) == chars
