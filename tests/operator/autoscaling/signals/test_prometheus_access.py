"""The access to a Prometheus: from the declaration in a resource to the headers of a request."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.operator.api.resources import watched

from disagg_operator.api import parse
from disagg_operator.autoscaling.signals.prometheus_access import (
    Access,
    PrometheusEndpoint,
    Unreadable,
    access_of,
    endpoint_of,
)

PEM = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"
TOKEN = {"authorization": {"credentials": {"name": "prom"}}}
BASIC = {"basicAuth": {"username": {"name": "prom"}, "password": {"name": "prom", "key": "word"}}}
CA: dict[str, Any] = {"tlsConfig": {"ca": {"configMap": {"name": "ca"}}}}
AT = "spec.observability.prometheus"


def access(url: str = "https://host:9090", **spec: Any) -> Access:
    prometheus = parse(watched(url, **spec)).spec.observability.prometheus
    assert prometheus is not None
    return access_of(prometheus)


def secret(**values: str | bytes) -> dict[tuple[str, str], Any]:
    data = {k: base64.b64encode(v.encode() if isinstance(v, str) else v).decode() for k, v in values.items()}
    return {("Secret", "prom"): {"data": data}}


def test_a_url_alone_asks_for_nothing() -> None:
    assert access("http://host/").refs() == ()
    assert endpoint_of(access("http://host/"), {}) == PrometheusEndpoint("http://host")


@pytest.mark.parametrize(
    ("spec", "objects", "headers"),
    [
        pytest.param(
            TOKEN, secret(token="a.b\n"), {"Authorization": "Bearer a.b"},
            id="a file's last newline is no part of a token",
        ),
        pytest.param(
            BASIC, secret(username="me", word="a: b"),
            {"Authorization": f"Basic {base64.b64encode(b'me:a: b').decode()}"}, id="basic",
        ),
        pytest.param(
            {**TOKEN, "headers": [{"name": "X-Scope-OrgID", "value": "team a"}]}, secret(token="t"),
            {"X-Scope-OrgID": "team a", "Authorization": "Bearer t"}, id="a tenant and a token",
        ),
    ],
)  # fmt: skip
def test_headers(spec: dict[str, Any], objects: Any, headers: dict[str, str]) -> None:
    assert dict(endpoint_of(access(**spec), objects).headers) == headers


def test_certificates_come_from_a_config_map_or_a_secret_and_nothing_else_in_them_counts() -> None:
    text = f"# a comment\n{PEM}-----BEGIN PRIVATE KEY-----\nBBBB\n-----END PRIVATE KEY-----\n{PEM}"
    assert endpoint_of(access(**CA), {("ConfigMap", "ca"): {"data": {"ca.crt": text}}}).ca_pem == PEM + PEM
    from_secret = access(tlsConfig={"ca": {"secret": {"name": "prom"}}})
    assert endpoint_of(from_secret, secret(**{"ca.crt": PEM})).ca_pem == PEM


@pytest.mark.parametrize(
    ("spec", "objects", "words"),
    [
        (TOKEN, {}, f"{AT}.authorization.credentials: Secret prom does not exist"),
        (TOKEN, {("Secret", "prom"): None}, f"{AT}.authorization.credentials: Secret prom does not exist"),
        (TOKEN, {("Secret", "prom"): {}}, f"{AT}.authorization.credentials: Secret prom has no key token"),
        (TOKEN, secret(token=" "), f"{AT}.authorization.credentials: key token of Secret prom is empty"),
        (
            TOKEN,
            secret(token="a\r\nHost: b"),
            f"{AT}.authorization.credentials: key token of Secret prom is empty or no token",
        ),
        (TOKEN, secret(token=b"\xff\xfe"), f"{AT}.authorization.credentials: key token of Secret prom is no text"),
        (BASIC, secret(username="me"), f"{AT}.basicAuth.password: Secret prom has no key word"),
        (BASIC, secret(word="w"), f"{AT}.basicAuth.username: Secret prom has no key username"),
        (
            BASIC,
            secret(username="a:b", word="w"),
            f"{AT}.basicAuth.username: key username of Secret prom is no user name",
        ),
        (BASIC, secret(username="me", word="a\nb"), f"{AT}.basicAuth.password: key word of Secret prom is no password"),
        (CA, {}, f"{AT}.tlsConfig.ca.configMap: ConfigMap ca does not exist"),
        (
            CA,
            {("ConfigMap", "ca"): {"data": {"ca.crt": "hello"}}},
            f"{AT}.tlsConfig.ca.configMap: key ca.crt of ConfigMap ca holds no PEM",
        ),
    ],
)
def test_what_is_missing_or_wrong_is_told_by_field_and_key(spec: dict[str, Any], objects: Any, words: str) -> None:
    with pytest.raises(Unreadable) as caught:
        endpoint_of(access(**spec), objects)
    assert str(caught.value).startswith(words)
    assert caught.value.reason == "CredentialsUnavailable"


@given(st.binary(max_size=40), st.sampled_from([TOKEN, BASIC]))
def test_no_secret_is_shown_or_ends_a_header(end: bytes, spec: dict[str, Any]) -> None:
    value, told = b"s3cr3t" + end, ""
    try:
        found = endpoint_of(access(**spec), secret(token=value, username="me", word=value))
    except Unreadable as error:
        told = str(error)
    else:
        told, carried = repr(found), dict(found.headers)["Authorization"]
        assert carried.isprintable()
        assert carried not in told
    assert "s3cr3t" not in told
