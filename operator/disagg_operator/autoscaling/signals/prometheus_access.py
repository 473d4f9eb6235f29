"""PURE: how a Prometheus is reached: what a resource refers to, and what is found there.

Secrets show in no repr and in no message.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from disagg_operator.api.prometheus import PrometheusSpec
from disagg_operator.kube.resources import CONFIG_MAP, SECRET

PATH = "spec.observability.prometheus"
# What a reference leads to can't be used / the server did not give what was asked of it.
CREDENTIALS_UNAVAILABLE = "CredentialsUnavailable"
METRICS_UNAVAILABLE = "MetricsUnavailable"
_VISIBLE = re.compile(r"[!-~]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")

Objects = Mapping[tuple[str, str], Mapping[str, Any] | None]  # by kind and name; None: not there


class Unreadable(Exception):
    """There are no metrics to be had from a Prometheus now.

    `reason` for the condition; `refused`: other credentials may help.
    """

    def __init__(self, message: str, reason: str = METRICS_UNAVAILABLE, *, refused: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Ref:
    """A key of an object in the resource's own namespace; there is no way to name another.

    `field`: of the resource.
    """

    field: str
    kind: str
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Access:
    """What a resource says of its Prometheus."""

    url: str
    headers: tuple[tuple[str, str], ...] = ()
    token: Ref | None = None
    username: Ref | None = None
    password: Ref | None = None
    ca: Ref | None = None

    def refs(self) -> tuple[Ref, ...]:
        return tuple(ref for ref in (self.token, self.username, self.password, self.ca) if ref is not None)


@dataclass(frozen=True, slots=True)
class PrometheusEndpoint:
    """A Prometheus with all that a request needs.

    `ca_pem`: trust these certificates instead of the public authorities; `credentials_field`: of
    the resource, where the credentials come from, or would.
    """

    url: str
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ca_pem: str | None = field(default=None, repr=False)
    credentials_field: str = f"{PATH}.authorization"


def access_of(spec: PrometheusSpec) -> Access:
    """What is declared."""
    auth, basic = spec.authorization, spec.basic_auth
    ca = None
    if spec.tls_config is not None:
        secret, config_map = spec.tls_config.ca.secret, spec.tls_config.ca.config_map
        if secret is not None:
            ca = Ref(f"{PATH}.tlsConfig.ca.secret", SECRET.kind, secret.name, secret.key)
        elif config_map is not None:
            ca = Ref(f"{PATH}.tlsConfig.ca.configMap", CONFIG_MAP.kind, config_map.name, config_map.key)
    return Access(
        url=spec.url.rstrip("/"),
        headers=tuple((header.name, header.value) for header in spec.headers),
        token=None
        if auth is None
        else _secret("authorization.credentials", auth.credentials.name, auth.credentials.key),
        username=None if basic is None else _secret("basicAuth.username", basic.username.name, basic.username.key),
        password=None if basic is None else _secret("basicAuth.password", basic.password.name, basic.password.key),
        ca=ca,
    )


def _secret(name: str, secret: str, key: str) -> Ref:
    return Ref(f"{PATH}.{name}", SECRET.kind, secret, key)


def endpoint_of(access: Access, objects: Objects) -> PrometheusEndpoint:
    """With what the references lead to. Raises Unreadable naming the field."""
    headers, source = dict(access.headers), f"{PATH}.authorization"
    if access.token is not None:
        token = _value(access.token, objects).strip()
        if not _VISIBLE.fullmatch(token):
            raise _unusable(access.token, "is empty or no token: a bearer token is one word of ASCII characters")
        headers["Authorization"] = f"Bearer {token}"
    elif access.username is not None and access.password is not None:
        headers["Authorization"], source = _basic(access.username, access.password, objects), f"{PATH}.basicAuth"
    return PrometheusEndpoint(
        access.url, tuple(headers.items()), None if access.ca is None else _certificates(access.ca, objects), source
    )


def _basic(username: Ref, password: Ref, objects: Objects) -> str:
    """As RFC 7617 has it. A file's last newline belongs to no password."""
    user, word = (_value(ref, objects).rstrip("\r\n") for ref in (username, password))
    if ":" in user or not user or _CONTROL.search(user):
        raise _unusable(username, "is no user name: it is empty, or has a colon or a control character")
    if _CONTROL.search(word):
        raise _unusable(password, "is no password: it has a control character")
    return f"Basic {base64.b64encode(f'{user}:{word}'.encode()).decode()}"


def _certificates(ref: Ref, objects: Objects) -> str:
    """The certificates alone, whatever else the text holds."""
    found = _PEM.findall(_value(ref, objects))
    if not found:
        raise _unusable(ref, "holds no PEM certificate")
    return "\n".join(found) + "\n"


def _value(ref: Ref, objects: Objects) -> str:
    found = objects.get((ref.kind, ref.name))
    if found is None:
        raise Unreadable(f"{ref.field}: {ref.kind} {ref.name} does not exist", CREDENTIALS_UNAVAILABLE)
    raw = (found.get("data") or {}).get(ref.key)
    if not isinstance(raw, str):
        raise Unreadable(f"{ref.field}: {ref.kind} {ref.name} has no key {ref.key}", CREDENTIALS_UNAVAILABLE)
    try:
        return base64.b64decode(raw, validate=True).decode("utf-8") if ref.kind == SECRET.kind else raw
    except ValueError:
        raise _unusable(ref, "is no text") from None


def _unusable(ref: Ref, why: str) -> Unreadable:
    return Unreadable(f"{ref.field}: key {ref.key} of {ref.kind} {ref.name} {why}", CREDENTIALS_UNAVAILABLE)
