"""PURE: Access to a Prometheus, from the references in a resource and the objects that they name.

Secrets appear in no repr and in no message.
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
# The reason if a referenced object cannot be used, and the reason if the server did not return the
# metrics.
CREDENTIALS_UNAVAILABLE = "CredentialsUnavailable"
METRICS_UNAVAILABLE = "MetricsUnavailable"
_VISIBLE = re.compile(r"[!-~]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----")

Objects = Mapping[tuple[str, str], Mapping[str, Any] | None]  # by kind and name; None: not found


class Unreadable(Exception):
    """Raised when no metrics can be read from a Prometheus now.

    `reason` is the reason of the condition. `refused` means that other credentials may help.
    """

    def __init__(self, message: str, reason: str = METRICS_UNAVAILABLE, *, refused: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.refused = refused


@dataclass(frozen=True, slots=True)
class Ref:
    """A key of an object in the resource's own namespace; no other namespace can be named.

    `field` is the field of the resource that holds the reference.
    """

    field: str
    kind: str
    name: str
    key: str


@dataclass(frozen=True, slots=True)
class Access:
    """The access to Prometheus that a resource declares."""

    url: str
    """The base URL, without a slash at its end."""
    headers: tuple[tuple[str, str], ...] = ()
    """(name, value) of the headers to send."""
    token: Ref | None = None
    """The bearer token."""
    username: Ref | None = None
    """The user name for basic authentication."""
    password: Ref | None = None
    """The password for basic authentication."""
    ca: Ref | None = None
    """The certificates to trust instead of the public authorities."""

    def refs(self) -> tuple[Ref, ...]:
        """Return the references that are set."""
        return tuple(ref for ref in (self.token, self.username, self.password, self.ca) if ref is not None)


@dataclass(frozen=True, slots=True)
class PrometheusEndpoint:
    """A Prometheus with everything that a request needs."""

    url: str
    """The base URL."""
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """(name, value) of all headers to send, including the credentials."""
    ca_pem: str | None = field(default=None, repr=False)
    """The certificates to trust; None: the public authorities."""
    credentials_field: str = f"{PATH}.authorization"
    """The field of the resource that holds the credentials, or would hold them."""


def access_of(spec: PrometheusSpec) -> Access:
    """Return the access that a resource declares."""
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
    """Return the endpoint with the values of all references.

    Raises Unreadable, which names the field.
    """
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
    """Return the header value of RFC 7617. The last newline of a file is not part of a password."""
    user, word = (_value(ref, objects).rstrip("\r\n") for ref in (username, password))
    if ":" in user or not user or _CONTROL.search(user):
        raise _unusable(username, "is no user name: it is empty, or has a colon or a control character")
    if _CONTROL.search(word):
        raise _unusable(password, "is no password: it has a control character")
    return f"Basic {base64.b64encode(f'{user}:{word}'.encode()).decode()}"


def _certificates(ref: Ref, objects: Objects) -> str:
    """Return only the certificates of a text."""
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
