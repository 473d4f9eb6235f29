"""Requests of all kinds, most of them wrong: what the served OpenAPI document allows and forbids,
and mutations of both.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis import GenerationMode

PATHS = ("/v1/completions", "/v1/chat/completions")
# Values that have been a problem somewhere, at some time.
ODD: list[Any] = [
    None, True, False, 0, -1, 1, 3e-38, 5e-324, 1e308, -1e308, 1e-5, 1 << 31, (1 << 63) - 1, 1 << 64, 10**400,
    "", "\x00", "<|user|>", "<|end|>" * 200, "a" * 70_000, "\u202e\r\nx: y", "\u0301" * 2000, "\U0001f600" * 500,
    [], {}, [[]], [None], ["x"] * 17, [0] * 600, [258], [259], [1 << 31], [[0]] * 16, {"a": {"b": {"c": []}}},
    {"0": 100, "00": 100, "000": 100}, {"258": -100}, {"259": 1}, ["", "a"], ["a"] * 16,
    {"regex": "(a{1,400}){1,400}"}, {"regex": "("}, {"regex": r"(\p{L}{1,99}.*){9}"}, {"regex": ".*a.{200}"},
    {"choice": ["a" * 30_000, "b"]}, {"grammar": "start: e\ne: e e | \"a\" |"}, {"grammar": "start: " + "(" * 300},
    {"json": {"type": "array", "items": {"$ref": "#"}}}, {"json": {"$ref": "#/nowhere"}}, {"json": {"pattern": "("}},
    {"json": {"allOf": [{"type": "string"}, {"type": "integer"}]}},
    {"json": {"type": "string", "pattern": "(a|b)*a(a|b){20}", "maxLength": 50_000}},
    {"type": "json_schema", "json_schema": {"schema": {"enum": list(range(5000))}}}, {"type": "json_object"},
]  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A request."""

    path: str
    body: bytes

    def __repr__(self) -> str:
        return f"Case({self.path!r}, {self.body[:2000]!r})"


def _tamed(body: Any, model: str, name: str) -> Any:
    """Return a body that does not multiply its work by hundreds, for the model `name` if any."""
    if not isinstance(body, dict):
        return body
    body = dict(body)
    if name:
        body["model"] = model
    if isinstance(body.get("n"), int) and body["n"] > 2:
        body["n"] = 2
    if isinstance(prompts := body.get("prompt"), list) and len(prompts) > 2 and not isinstance(prompts[0], int):
        body["prompt"] = prompts[:2]
    return body


def _leaves(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [path, *(leaf for key, value in inner for leaf in _leaves(value, (*path, key)))]


def _replaced(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(body) if isinstance(body, dict) else list(body)
    copy[path[0]] = _replaced(body[path[0]], path[1:], value)
    return copy


@st.composite
def _changed(draw: st.DrawFn, bodies: st.SearchStrategy[Any], names: list[str]) -> Any:
    """Draw a body with odd values in some places."""
    body = draw(bodies)
    if isinstance(body, dict):
        for name in draw(st.lists(st.sampled_from(names), max_size=3)):
            body = body | {name: draw(st.sampled_from(ODD))}
    if draw(st.booleans()):
        body = _replaced(body, draw(st.sampled_from(_leaves(body)[:200])), draw(st.sampled_from(ODD)))
    return body


def _spoilt(raw: bytes, at: int, length: int, piece: bytes) -> bytes:
    at = at % (len(raw) + 1)
    return raw[:at] + piece + raw[at + length :]


def _encoded(body: Any) -> bytes:
    return json.dumps(body, ensure_ascii=False).encode(errors="surrogatepass")


_PIECES = [
    b"",
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b'"',
    b"\\",
    b"\\ud800",
    b"[" * 999,
    b"{",
    b"}",
    b"NaN",
    b"1e999",
    b",",
]


def cases(document: dict[str, Any], model: str) -> st.SearchStrategy[Case]:
    """Return requests for the API that the document describes, most of them for `model`."""
    schema = schemathesis.openapi.from_dict(document)
    kinds: list[st.SearchStrategy[Case]] = []
    for path in PATHS:
        content = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        names = sorted(document["components"]["schemas"][content["$ref"].rpartition("/")[2]]["properties"])
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
            drawn = schema[path]["POST"].as_strategy(generation_mode=mode).map(lambda case: case.body)
            bodies = st.builds(_tamed, drawn, st.just(model), st.sampled_from([model, model, model, ""]))
            if mode is GenerationMode.POSITIVE:
                kinds += [bodies.map(_case(path)), _changed(bodies, names).map(_case(path))]
            else:
                kinds.append(bodies.map(_case(path)))
            spoilt = st.builds(
                _spoilt, bodies.map(_raw), st.integers(0, 999), st.integers(0, 9), st.sampled_from(_PIECES)
            )
            kinds.append(st.builds(Case, st.just(path), spoilt))
    return st.one_of(kinds)


def _raw(body: Any) -> bytes:
    try:
        return _encoded(body)
    except (TypeError, ValueError):
        return b"{"  # what schemathesis makes for other media types


def _case(path: str) -> Callable[[Any], Case]:
    return lambda body: Case(path, _raw(body))


def verdict(case: Case, status: int, headers: Any, content: bytes) -> str:
    """Return what is wrong with an answer, or ""."""
    if status == 503 and not headers.get("retry-after", "").isdigit():
        return f"{case}: 503 without Retry-After: {content[:300]!r}"
    if status >= 500 and status != 503:
        return f"{case}: {status} {content[:300]!r}"
    if status != 200 and not json.loads(content)["error"]["message"]:
        return f"{case}: {status} without a message"
    return ""
