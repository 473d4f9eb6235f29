"""Tests of the requests that a client may send; everything else is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from disagg_router.errors import ApiError
from disagg_router.openai.sampling import sampling_of
from disagg_router.openai.schema import ChatRequest, CompletionRequest, parse
from disagg_router.workers.catalogue import Model
from disagg_router.workers.worker_info import Identity
from disagg_wire.protocol import MAX_GRAMMAR_CHARS

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
PLAIN: dict[str, Any] = {"model": "m", "prompt": "hi"}
MODEL = Model(Identity("m", "D"), 100, 2048, (0,))

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
    ({"repetition_penalty": 3e-38}, "repetition_penalty"),
    ({"repetition_penalty": 5e-324}, "repetition_penalty"),
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


def read(kind: Any, body: Any) -> dict[str, Any]:
    """Return the request's sampling parameters as the server reads them."""
    asked: ChatRequest | CompletionRequest = parse(kind, body)
    if isinstance(asked, CompletionRequest):
        asked.prompts()
    return sampling_of(asked, MODEL, 10, 1)


def refused(kind: Any, body: Any) -> ApiError:
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
    kind: Any, base: dict[str, Any], change: dict[str, Any]
) -> None:
    try:
        answer, status = read(kind, base | change), 200
    except ApiError as error:
        answer, status = error.body(), error.status
    assert status in (200, 400)
    json.dumps(answer, ensure_ascii=False, allow_nan=False).encode()


@pytest.mark.parametrize(("stop", "stops"), [(None, []), ("x", ["x"]), (["x", "y"], ["x", "y"])])
def test_stop_strings_are_a_list_however_they_are_sent(stop: Any, stops: list[str]) -> None:
    assert parse(CompletionRequest, PLAIN | {"stop": stop}).stops == stops


SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("change", "structured"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        (
            {"response_format": {"type": "json_object"}},
            ("response_format", "json_schema", json.dumps({"type": "object"})),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
            ("response_format", "json_schema", json.dumps(SCHEMA)),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, ("structured_outputs", "json_schema", json.dumps(SCHEMA))),
        ({"structured_outputs": {"choice": ["a", "b"]}}, ("structured_outputs", "choice", '["a", "b"]')),
        ({"structured_outputs": {"regex": "a+"}}, ("structured_outputs", "regex", "a+")),
        ({"structured_outputs": {"grammar": "start: x"}}, ("structured_outputs", "grammar", "start: x")),
        (
            {"response_format": {"type": "text"}, "structured_outputs": {"regex": "a+"}},
            ("structured_outputs", "regex", "a+"),
        ),
    ],
)
def test_the_form_of_the_output_is_asked_for_in_one_way(change: dict[str, Any], structured: Any) -> None:
    assert parse(ChatRequest, CHAT | change).structured == structured


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "x" * (MAX_GRAMMAR_CHARS + 1)}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "(a{400}b){400}"}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}, "min_tokens": 2}, "min_tokens"),
        ({"structured_outputs": {"regex": "a"}, "ignore_eos": True}, "ignore_eos"),
    ],
)
def test_what_contradicts_the_form_of_the_output_is_refused_by_name(change: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        _ = parse(ChatRequest, CHAT | change).structured
    assert (caught.value.status, caught.value.param) == (400, param)


def test_the_newer_name_of_a_chats_limit_counts_and_only_completions_have_a_default() -> None:
    assert parse(ChatRequest, CHAT | {"max_tokens": 5}).wanted_tokens == 5
    assert parse(ChatRequest, CHAT | {"max_tokens": 5, "max_completion_tokens": 6}).wanted_tokens == 6
    assert parse(CompletionRequest, PLAIN | {"max_tokens": 5}).wanted_tokens == 5
    assert parse(ChatRequest, CHAT).default_tokens is None
    assert parse(CompletionRequest, PLAIN).default_tokens == 16


@pytest.mark.parametrize(
    ("kind", "change", "wanted"),
    [
        (ChatRequest, {}, None),
        (ChatRequest, {"top_logprobs": 3}, None),
        (ChatRequest, {"logprobs": True}, 0),
        (ChatRequest, {"logprobs": True, "top_logprobs": 3}, 3),
        (CompletionRequest, {}, None),
        (CompletionRequest, {"logprobs": 2}, 2),
    ],
)
def test_log_probabilities_come_where_they_are_asked_for(kind: Any, change: dict[str, Any], wanted: int | None) -> None:
    base = CHAT if kind is ChatRequest else PLAIN
    assert parse(kind, base | change).wanted_logprobs == wanted


def test_a_message_in_parts_is_their_text_in_order() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    request = parse(
        ChatRequest, CHAT | {"messages": [{"role": "user", "content": parts}, {"role": "system", "content": "c"}]}
    )
    assert [m.plain() for m in request.messages] == [
        {"role": "user", "content": "ab"},
        {"role": "system", "content": "c"},
    ]


@pytest.mark.parametrize(
    ("prompt", "prompts"),
    [("a", ["a"]), ([1, 2], [[1, 2]]), (["a", "b"], ["a", "b"]), ([[1, 2], [3]], [[1, 2], [3]]), ([[]], [[]])],
)
def test_a_request_has_an_entry_for_each_prompt(prompt: Any, prompts: list[Any]) -> None:
    assert parse(CompletionRequest, PLAIN | {"prompt": prompt}).prompts() == prompts


def test_a_list_of_no_prompts_is_refused() -> None:
    with pytest.raises(ApiError) as caught:
        parse(CompletionRequest, PLAIN | {"prompt": []}).prompts()
    assert (caught.value.status, caught.value.param) == (400, "prompt")


def test_a_schema_that_is_nested_too_deeply_is_refused() -> None:
    nested: Any = {}
    for _ in range(100_000):
        nested = {"type": "object", "items": nested}
    form = {"type": "json_schema", "json_schema": {"schema": nested}}
    for change in ({"response_format": form}, {"structured_outputs": {"json": nested}}):
        with pytest.raises(ApiError) as caught:
            _ = parse(ChatRequest, CHAT | change).structured
        assert (caught.value.status, caught.value.code) == (400, "invalid_body")
