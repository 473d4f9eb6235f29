"""Tests that a wrong request is answered with a 4xx in OpenAI's form that names what is wrong.

Nothing that a client sends leads to a 500.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.byte_tokenizer import VOCAB
from tests.fakes.token_worker import MAX_MODEL_LEN
from tests.profiles import examples
from tests.router.stack import MODEL, Stack, pair

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
PLAIN = {"model": MODEL, "prompt": "hi", "max_tokens": 2}
LONG = "x" * MAX_MODEL_LEN


# (change to a good body, status, code, param)
BOTH: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"model": "other"}, 404, "model_not_found", "model"),
    ({"model": None}, 400, "invalid_value", "model"),
    ({"model": 5}, 400, "invalid_value", "model"),
    ({"temperature": "hot"}, 400, "invalid_value", "temperature"),
    ({"temperature": -0.1}, 400, "invalid_value", "temperature"),
    ({"temperature": True}, 400, "invalid_value", "temperature"),
    ({"temperature": [1]}, 400, "invalid_value", "temperature"),
    ({"top_p": 0}, 400, "invalid_value", "top_p"),
    ({"max_tokens": 0}, 400, "invalid_value", "max_tokens"),
    ({"max_tokens": -1}, 400, "invalid_value", "max_tokens"),
    ({"max_tokens": 10**9}, 400, "invalid_value", "max_tokens"),
    ({"max_tokens": 2.5}, 400, "invalid_value", "max_tokens"),
    ({"max_tokens": MAX_MODEL_LEN}, 400, "context_length_exceeded", "max_tokens"),
    ({"n": 0}, 400, "invalid_value", "n"),
    ({"n": 10**9}, 400, "invalid_value", "n"),
    ({"n": "2"}, 400, "invalid_value", "n"),
    ({"stream": "yes"}, 400, "invalid_value", "stream"),
    ({"stream_options": {"include_usage": 1}}, 400, "invalid_value", "stream_options.include_usage"),
    ({"stop": 5}, 400, "invalid_value", "stop"),
    ({"stop": ["a"] * 17}, 400, "invalid_value", "stop"),
    ({"seed": 1 << 70}, 400, "invalid_value", "seed"),
    ({"logit_bias": {"x": 1}}, 400, "invalid_value", "logit_bias"),
    ({"logit_bias": {"5": 101}}, 400, "invalid_value", "logit_bias"),
    ({"logit_bias": {str(VOCAB): 1}}, 400, "invalid_value", "logit_bias"),
    ({"repetition_penalty": 0}, 400, "invalid_value", "repetition_penalty"),
    ({"presence_penalty": 3}, 400, "invalid_value", "presence_penalty"),
    ({"tools": [{"type": "function"}]}, 400, "unsupported_parameter", "tools"),
    ({"response_format": {"type": "xml"}}, 400, "invalid_value", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, 400, "invalid_value", "response_format"),
    ({"kv_transfer_params": {"remote_host": "10.0.0.1"}}, 400, "unknown_parameter", "kv_transfer_params"),
    ({"bootstrap_host": "10.0.0.1"}, 400, "unknown_parameter", "bootstrap_host"),
    ({"ticket": {}}, 400, "unknown_parameter", "ticket"),
    ({"Temperature": 1}, 400, "unknown_parameter", "Temperature"),
]
CHAT_ONLY: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"messages": []}, 400, "invalid_value", "messages"),
    ({"messages": "hi"}, 400, "invalid_value", "messages"),
    ({"messages": None}, 400, "invalid_value", "messages"),
    ({"messages": [{"role": "tool", "content": "x"}]}, 400, "invalid_value", "messages.0.role"),
    ({"messages": [{"role": "user"}]}, 400, "invalid_value", "messages.0.content"),
    ({"messages": [{"role": "user", "content": LONG}]}, 400, "context_length_exceeded", "prompt"),
    (
        {"messages": [{"role": "user", "content": "x", "tool_calls": []}]},
        400,
        "unknown_parameter",
        "messages.0.tool_calls",
    ),
    ({"logprobs": 2}, 400, "invalid_value", "logprobs"),
    ({"top_logprobs": 21}, 400, "invalid_value", "top_logprobs"),
    ({"prompt": "x"}, 400, "unknown_parameter", "prompt"),
]
PLAIN_ONLY: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"prompt": ""}, 400, "empty_prompt", "prompt"),
    ({"prompt": []}, 400, "invalid_value", "prompt"),
    ({"prompt": ["a", ""]}, 400, "empty_prompt", "prompt"),
    ({"prompt": ["a"] * 17}, 400, "invalid_value", "prompt"),
    ({"prompt": [VOCAB]}, 400, "invalid_value", "prompt"),
    ({"prompt": [-1]}, 400, "invalid_value", None),
    ({"prompt": [1.5]}, 400, "invalid_value", None),
    ({"prompt": LONG}, 400, "context_length_exceeded", "prompt"),
    ({"prompt": [5] * MAX_MODEL_LEN}, 400, "context_length_exceeded", "prompt"),
    ({"prompt": {"a": 1}}, 400, "invalid_value", None),
    ({"echo": True}, 400, "invalid_value", "echo"),
    ({"logprobs": 6}, 400, "invalid_value", "logprobs"),
    ({"best_of": 4}, 400, "unsupported_parameter", "best_of"),
    ({"suffix": "x"}, 400, "unsupported_parameter", "suffix"),
]


@pytest.mark.slow
async def test_every_wrong_field_is_refused_by_name(tmp_path: Path) -> None:
    cases = [("/v1/chat/completions", CHAT, *c) for c in BOTH + CHAT_ONLY] + [
        ("/v1/completions", PLAIN, *c) for c in BOTH + PLAIN_ONLY
    ]
    async with Stack(tmp_path, *pair()) as stack:
        for path, good, change, status, code, param in cases:
            for stream in (False, True):
                body = good | {"stream": stream} | change
                answer = await stack.http.post(path, json=body)
                error = answer.json()["error"]
                assert (answer.status_code, error["code"]) == (status, code), (path, change, error)
                assert param is None or error["param"] == param, (path, change, error)
                assert set(error) == {"message", "type", "param", "code"}
                if code == "context_length_exceeded":
                    assert str(MAX_MODEL_LEN) in error["message"]


async def test_harmless_fields_and_nulls_are_taken(tmp_path: Path) -> None:
    extra = {
        "user": "u",
        "metadata": {"a": "b"},
        "store": False,
        "service_tier": "auto",
        "temperature": None,
        "stop": None,
        "tools": None,
        "top_k": -1,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "ignore_eos": True,
        "min_tokens": 1,
        "logit_bias": {"5": -100},
        "response_format": {"type": "text"},
        "stream_options": None,
        "n": None,
        "max_tokens": None,
    }
    prefill, decode = pair()
    async with Stack(tmp_path, prefill, decode) as stack:
        for path, good in (("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)):
            answer = await stack.http.post(path, json=good | extra)
            assert answer.status_code == 200, answer.text
        sampling = prefill.seen.bodies[-1]["sampling"]
        assert (sampling["top_k"], sampling["stop_token_ids"], sampling["logit_bias"]) == (0, [], [[5, -100.0]])
        assert sampling["max_new_tokens"] == 16
        # OpenAI's default for completions must not lead to a refusal near the end of the context.
        tight = await stack.http.post("/v1/completions", json={"model": MODEL, "prompt": [5] * (MAX_MODEL_LEN - 3)})
        assert tight.json()["usage"]["completion_tokens"] == 3


RAW: list[tuple[bytes, int, str]] = [
    (b"", 400, "invalid_json"),
    (b"{", 400, "invalid_json"),
    (b"\xff\xfe", 400, "invalid_json"),
    (b"[]", 400, "invalid_body"),
    (b'"x"', 400, "invalid_body"),
    (b"null", 400, "invalid_body"),
    (b'{"model":"m","prompt":NaN}', 400, "invalid_value"),
    (b'{"model":"m","prompt":"x","temperature":NaN}', 400, "invalid_value"),
    (b'{"model":"m","prompt":"x","temperature":1e999}', 400, "invalid_value"),
    (b'{"model":"m","prompt":"x","seed":' + b"9" * 5000 + b"}", 400, "invalid_json"),
    (b'{"model":"m","prompt":' + b"[" * 50_000, 400, "invalid_json"),
    (b'{"model":"m","prompt":' + b"[" * 500 + b"]" * 500 + b"}", 400, "invalid_value"),
    (b'{"model":"m","prompt":"\\ud800"}', 400, "invalid_json"),
    (b'{"model":"\\ud800","prompt":"x"}', 400, "invalid_json"),
    (b'{"model":"m","prompt":"x","\\ud800":1}', 400, "invalid_json"),
    (b'{"model":"m","prompt":"x","stop":["\\udfff"]}', 400, "invalid_json"),
    (b'{"prompt":"' + b"x" * 70_000 + b'"}', 413, "body_too_large"),
]


async def test_bodies_that_are_no_request_are_refused(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair(), max_body_bytes=65536) as stack:
        for raw, status, code in RAW:
            answer = await stack.http.post("/v1/completions", content=raw)
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), (raw[:80], answer.text[:200])


async def test_unknown_paths_and_methods_are_answered_in_the_same_form(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        for method, path, status in [
            ("GET", "/v1/chat/completions", 405),
            ("DELETE", "/v1/models", 405),
            ("POST", "/v1/embeddings", 404),
            ("GET", "/", 404),
            ("POST", "/internal/v1/decode", 404),
        ]:
            answer = await stack.http.request(method, path)
            assert (answer.status_code, set(answer.json()["error"])) == (status, {"message", "type", "param", "code"})


async def test_no_path_leads_to_another_host(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        for method, path in (("POST", "/v1/completions/"), ("POST", "/v1/chat/completions/"), ("GET", "/healthz/")):
            answer = await stack.http.request(method, path, headers={"host": "elsewhere"}, follow_redirects=False)
            assert (answer.status_code, answer.headers.get("location")) == (404, None)


async def test_api_keys_are_asked_for_where_set(tmp_path: Path) -> None:
    (tmp_path / "api-keys").write_text("first-key\nsecond-key\n")
    async with Stack(tmp_path, *pair(), api_keys_file=str(tmp_path / "api-keys")) as stack:
        cases = [
            (None, 401),
            ("Bearer wrong", 401),
            ("Bearer first-key", 200),
            ("bearer second-key", 200),
            ("Basic first-key", 401),
            ("Bearer", 401),
            ("Bearer first-key second-key", 401),
        ]
        for header, status in cases:
            headers = {} if header is None else {"authorization": header}
            for answer in (
                await stack.http.get("/v1/models", headers=headers),
                await stack.http.post("/v1/completions", json=PLAIN, headers=headers),
            ):
                assert answer.status_code == status
                if status == 401:
                    assert answer.json()["error"]["code"] == "invalid_api_key"
        assert (await stack.http.get("/healthz")).status_code == 200


async def test_a_huge_head_is_refused_and_the_next_request_is_served(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        try:
            answer = await stack.http.get("/v1/models", headers={"x-big": "x" * 200_000})
            assert answer.status_code in (400, 431)
        except httpx.HTTPError:
            pass  # the server hung up while the request was still being written
        assert (await stack.http.get("/v1/models")).status_code == 200


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(codec=None, exclude_categories=()))
)
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=5), v, max_size=3), max_leaves=6
)
names = st.sampled_from(
    [
        "model",
        "prompt",
        "messages",
        "max_tokens",
        "temperature",
        "top_p",
        "n",
        "stream",
        "stop",
        "seed",
        "logit_bias",
        "logprobs",
        "stream_options",
        "min_tokens",
        "metadata",
        "echo",
        "tools",
        "max_completion_tokens",
        "top_logprobs",
    ]
) | st.text(max_size=8)
bodies = st.one_of(
    values,
    st.dictionaries(names, values, max_size=4).map(lambda d: PLAIN | d),
    st.dictionaries(names, values).map(CHAT.__or__),
)


@pytest.mark.slow
async def test_no_body_makes_a_500(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as stack:
        loop = asyncio.get_running_loop()

        @settings(max_examples=examples(150), suppress_health_check=list(HealthCheck), database=None)
        @given(body=bodies, path=st.sampled_from(["/v1/chat/completions", "/v1/completions"]))
        def check(body: Any, path: str) -> None:
            raw = json.dumps(body).encode()
            answer = asyncio.run_coroutine_threadsafe(stack.http.post(path, content=raw), loop).result(30)
            if answer.status_code != 200:
                assert 400 <= answer.status_code < 500, answer.text
                assert answer.json()["error"]["message"]

        await asyncio.to_thread(check)
