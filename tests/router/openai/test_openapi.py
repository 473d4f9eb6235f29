"""Tests of the OpenAPI document: it says of a body what the router does with it."""

from __future__ import annotations

import functools
import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.router.fuzz import ODD, PATHS
from tests.router.openai.test_schema import BAD_CHAT, BAD_PLAIN, CHAT, PLAIN

from disagg_router.errors import ApiError
from disagg_router.openai.openapi import document
from disagg_router.openai.schema import ChatRequest, CompletionRequest, parse

DOCUMENT = document("1.2.3", keys=True)
KINDS: dict[str, Any] = dict(zip(PATHS, (CompletionRequest, ChatRequest), strict=True))
BASES: dict[str, dict[str, Any]] = dict(zip(PATHS, (PLAIN, CHAT), strict=True))


@functools.cache
def validator(path: str) -> jsonschema_rs.Draft202012Validator:
    content = DOCUMENT["paths"][path]["post"]["requestBody"]["content"]["application/json"]
    return jsonschema_rs.Draft202012Validator(content["schema"] | {"components": DOCUMENT["components"]})


def accepted(path: str, body: Any) -> bool:
    try:
        parse(KINDS[path], body)
    except ApiError:
        return False
    return True


def has_whole_floats(body: Any) -> bool:
    """Return whether a number like 1.0 is in it: JSON Schema takes it for an integer."""
    if isinstance(body, dict):
        return any(map(has_whole_floats, body.values()))
    if isinstance(body, list):
        return any(map(has_whole_floats, body))
    return isinstance(body, float) and body.is_integer()


def check(path: str, body: Any) -> None:
    try:
        body = json.loads(json.dumps(body, allow_nan=False))
    except (ValueError, UnicodeEncodeError):
        return  # it is no JSON
    if not has_whole_floats(body):
        try:
            json.dumps(body, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return  # half of a surrogate pair
        assert accepted(path, body) is validator(path).is_valid(body), body


@pytest.mark.parametrize("path", PATHS)
def test_what_the_tables_of_good_and_bad_requests_hold(path: str) -> None:
    assert accepted(path, BASES[path])
    for change in [*(change for change, _ in BAD_CHAT), *BAD_PLAIN]:
        check(path, BASES[path] | change)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", ODD, ids=[ascii(value)[:30] for value in ODD])
def test_an_odd_value_in_any_field(path: str, value: Any) -> None:
    for name in KINDS[path].model_fields | {"tools": None, "suffix": None, "unknown": None}:
        check(path, BASES[path] | {name: value})


FORMATS: st.SearchStrategy[Any] = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "json_object", "json_schema", "xml"])},
    optional={"json_schema": st.sampled_from([None, {}, {"schema": {}}, {"schema": {"a": 1}, "strict": True}])},
)
OUTPUTS: st.SearchStrategy[Any] = st.dictionaries(
    st.sampled_from(["json", "regex", "choice", "grammar", "other"]), st.sampled_from([None, "", "a", {}, ["a"], []])
)
PARTS = st.lists(st.fixed_dictionaries({"type": st.sampled_from(["text", "image"]), "text": st.text(max_size=3)}))
MESSAGES = st.lists(
    st.fixed_dictionaries(
        {"role": st.sampled_from(["user", "tool", "system"]), "content": st.none() | st.text(max_size=3) | PARTS},
        optional={"name": st.text(max_size=3), "other": st.none()},
    ),
    max_size=3,
)
BIASES = st.dictionaries(
    st.from_regex(r"[0-9]{1,11}|[a-z]|[0-9]\n", fullmatch=True), st.integers(-101, 101), max_size=3
)
PROMPTS = st.recursive(
    st.text(max_size=3) | st.integers(-1, 1 << 32) | st.none(), lambda inner: st.lists(inner, max_size=4), max_leaves=5
)


@pytest.mark.parametrize("path", PATHS)
@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "response_format": FORMATS,
            "structured_outputs": OUTPUTS,
            "messages": MESSAGES,
            "prompt": PROMPTS,
            "logit_bias": BIASES,
            "stop": st.text(max_size=2) | st.lists(st.text(max_size=2), max_size=18),
            "temperature": st.floats(-0.5, 2.5),
            "n": st.integers(-1, 18) | st.booleans(),
            "echo": st.booleans(),
            "logprobs": st.booleans() | st.integers(-1, 6),
        },
    )
)
@example({"structured_outputs": {"regex": "a", "choice": None}})
def test_what_the_document_allows_is_taken_and_what_it_forbids_is_refused(path: str, change: dict[str, Any]) -> None:
    check(path, BASES[path] | change)


def test_the_document_is_whole() -> None:
    """Every reference leads somewhere, and every schema is one."""
    text = json.dumps(DOCUMENT)
    for name in {piece.partition('"')[0] for piece in text.split("#/components/schemas/")[1:]}:
        assert jsonschema_rs.meta.is_valid(DOCUMENT["components"]["schemas"][name])
    assert (DOCUMENT["openapi"], DOCUMENT["info"]["version"]) == ("3.1.0", "1.2.3")
    assert DOCUMENT["security"] == [{"key": []}]
    assert "security" not in document("1", keys=False)
    assert "securitySchemes" not in document("1", keys=False)["components"]
