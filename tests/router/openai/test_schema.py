"""Tests of the requests that a client may send; everything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.errors import ApiError
from disagg_router.openai.generation import check_prompt, sampling_of
from disagg_router.openai.schema import ChatRequest, CompletionRequest, parse
from disagg_router.workers.worker_info import Model

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PLAIN: dict[str, Any] = {"model": "m", "prompt": "hi"}
MODEL = Model("D", 100, 2048, (0,))

BAD_CHAT: list[tuple[dict[str, Any], str | None]] = [
    ({"model": 5}, "model"),
    ({"model": ""}, "model"),
    ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [{"role": "user"}]}, "messages.0.content"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, None),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, None),
    ({"messages": [{"role": "user", "content": "x", "host": "10.0.0.1"}]}, "messages.0.host"),
    ({"temperature": "1"}, "temperature"),
    ({"temperature": -0.1}, "temperature"),
    ({"temperature": 2.1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"temperature": float("nan")}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_p": float("inf")}, "top_p"),
    ({"n": 0}, "n"),
    ({"n": 17}, "n"),
    ({"n": 10**9}, "n"),
    ({"n": 1.5}, "n"),
    ({"n": "2"}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"max_tokens": -5}, "max_tokens"),
    ({"max_tokens": 10**12}, "max_tokens"),
    ({"max_completion_tokens": 10**400}, "max_completion_tokens"),
    ({"stream": "yes"}, "stream"),
    ({"stream": 1}, "stream"),
    ({"seed": 1 << 64}, "seed"),
    ({"seed": 1.0}, "seed"),
    ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    ({"logprobs": 5}, "logprobs"),
    ({"stop": 5}, None),
    ({"stop": [""]}, None),
    ({"stop": ["x"] * 17}, None),
    ({"stop": ["x" * 257]}, None),
    ({"logit_bias": {"x": 1}}, None),
    ({"logit_bias": {"5": 101}}, None),
    ({"logit_bias": [1]}, "logit_bias"),
    ({"presence_penalty": 3}, "presence_penalty"),
    ({"kv_transfer_params": {"remote_host": "10.0.0.1"}}, "kv_transfer_params"),
    ({"bootstrap_host": "10.0.0.1"}, "bootstrap_host"),
    ({"prompt": "hi"}, "prompt"),
    ({"tools": [{"type": "function"}]}, "tools"),
    ({"response_format": {"type": "xml"}}, "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "response_format"),
    ({"response_format": {"type": "json_object", "json_schema": {"schema": {}}}}, "response_format"),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format.json_schema.schema"),
    ({"structured_outputs": {}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs"),
    ({"structured_outputs": {"regex": "x" * 70_000}}, "structured_outputs"),
    ({"structured_outputs": {"choice": []}}, None),
    ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ({"response_format": {"type": "json_object"}, "ignore_eos": True}, "ignore_eos"),
    ({"cache_salt": ""}, "cache_salt"),
    ({"\ud800": 1}, None),
    ({"user": "\ud800"}, None),
    ({"metadata": {"a": 1}}, None),
    ({"min_tokens": -1}, "min_tokens"),
    ({"top_k": -2}, "top_k"),
]
BAD_PLAIN: list[dict[str, Any]] = [
    {"prompt": None},
    {"prompt": 5},
    {"prompt": [-1]},
    {"prompt": [1 << 31]},
    {"prompt": ["a", 1]},
    {"prompt": [[1], "a"]},
    {"prompt": [1.5]},
    {"prompt": {}},
    {"prompt": ["x"] * 17},
    {"echo": True},
    {"logprobs": 6},
    {"logprobs": True},
    {"best_of": 3},
    {"suffix": "x"},
    {"messages": []},
]


def read(kind: type[ChatRequest] | type[CompletionRequest], body: Any) -> dict[str, Any]:
    """Return the request's sampling parameters as the server reads them."""
    asked = parse(kind, body)
    if isinstance(asked, CompletionRequest):
        asked.prompts()
    return sampling_of(asked, MODEL, 10, 1)


def refused(kind: type[ChatRequest] | type[CompletionRequest], body: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        read(kind, body)
    assert caught.value.status == 400
    json.dumps(caught.value.body(), ensure_ascii=False, allow_nan=False).encode()
    return caught.value


@pytest.mark.parametrize(("change", "param"), BAD_CHAT, ids=[ascii(c)[:40] for c, _ in BAD_CHAT])
def test_a_chat_that_is_wrong_is_refused_by_the_fields_name(change: dict[str, Any], param: str | None) -> None:
    error = refused(ChatRequest, CHAT | change)
    assert param is None or error.param == param
    assert len(str(error)) < 1000


@pytest.mark.parametrize("change", BAD_PLAIN, ids=[str(c)[:40] for c in BAD_PLAIN])
def test_a_completion_that_is_wrong_is_refused(change: dict[str, Any]) -> None:
    refused(CompletionRequest, PLAIN | change)


@pytest.mark.parametrize("body", [None, [], "x", 5, {}, {"model": "m"}])
def test_a_body_that_is_no_request_is_refused(body: Any) -> None:
    refused(ChatRequest, body)
    refused(CompletionRequest, body)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(), max_size=8), inner, max_size=3)
    ),
    max_leaves=8,
)
KNOWN = sorted({*ChatRequest.model_fields, *CompletionRequest.model_fields, "tools"})
NAMES = st.sampled_from(KNOWN) | st.text(st.characters(), max_size=8)


@pytest.mark.parametrize(("kind", "base"), [(ChatRequest, CHAT), (CompletionRequest, PLAIN)])
@given(change=st.dictionaries(NAMES, VALUES, max_size=4))
def test_whatever_is_sent_is_a_request_or_a_refusal_that_can_be_sent(
    kind: type[ChatRequest] | type[CompletionRequest], base: dict[str, Any], change: dict[str, Any]
) -> None:
    try:
        answer, status = read(kind, base | change), 200
    except ApiError as error:
        answer, status = error.body(), error.status
    assert status in (200, 400)
    json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


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
