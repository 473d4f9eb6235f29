"""Tests of spec.observability.tracing."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.api.resources import good

from disagg_operator.api import InvalidResource, parse


def test_a_collector_is_all_that_is_needed() -> None:
    tracing = parse(good(observability={"tracing": {"endpoint": "http://collector:4318"}})).spec.observability.tracing
    assert tracing is not None
    assert (tracing.sampling_ratio, tracing.trust_parent, tracing.headers_secret_ref) == (0.01, False, None)
    assert parse(good()).spec.observability.tracing is None


def test_the_keys_of_the_secrets_have_names() -> None:
    fields = {"endpoint": "https://[::1]:4318/otlp", "headersSecretRef": {"name": "a"}, "caSecretRef": {"name": "b"}}
    tracing = parse(good(observability={"tracing": fields})).spec.observability.tracing
    assert tracing is not None
    assert tracing.headers_secret_ref is not None
    assert tracing.ca_secret_ref is not None
    assert (tracing.headers_secret_ref.key, tracing.ca_secret_ref.key) == ("headers", "ca.crt")


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({}, "endpoint"),
        ({"endpoint": "collector:4318"}, "endpoint"),
        ({"endpoint": "grpc://collector:4317"}, "endpoint"),
        ({"endpoint": "http://me:secret@collector:4318"}, "endpoint"),
        ({"endpoint": "http://collector:4318?token=secret"}, "endpoint"),
        ({"endpoint": "http://c", "samplingRatio": 1.01}, "samplingRatio"),
        ({"endpoint": "http://c", "samplingRatio": -1}, "samplingRatio"),
        ({"endpoint": "http://c", "caSecretRef": {"name": "b"}}, "caSecretRef"),
        ({"endpoint": "http://c", "headersSecretRef": {"name": "b", "key": "../a"}}, "headersSecretRef"),
    ],
)
def test_what_is_refused_names_its_field(fields: dict[str, Any], path: str) -> None:
    with pytest.raises(InvalidResource, match=rf"spec\.observability\.tracing\.{path}"):
        parse(good(observability={"tracing": fields}))
