"""PURE: The models of spec.observability.prometheus.

The names are those of the Prometheus operator; headers are as in the Gateway API.
"""

from __future__ import annotations

from pydantic import Field

from disagg_operator.api.base import DnsName, Model, list_map
from disagg_operator.api.expressions import differ, lower_case, matches, one_of, present, starts_with
from disagg_operator.api.rules import Rule

# Only a host, a port and a path: everybody who may read the resource would see a password.
_HOST = r"([A-Za-z0-9_][-._A-Za-z0-9]*|\[[0-9A-Fa-f:.]+\])"
_URL = rf"^https?://{_HOST}(:[0-9]{{1,5}})?(/[-._~%!$&()*+,;=:@A-Za-z0-9/]*)?$"
_HEADERS_OF_THE_CLIENT = (
    "accept", "accept-encoding", "authorization", "connection", "content-encoding", "content-length", "content-type",
    "cookie", "expect", "host", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te",
    "trailer", "transfer-encoding", "upgrade", "user-agent", "www-authenticate",
)  # fmt: skip


def _key(default: str) -> str:
    """Return the field for a key of a Secret or ConfigMap."""
    found: str = Field(
        default,
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Key inside it.",
    )
    return found


class TokenRef(Model):
    """A key of a Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret.")
    key: str = _key("token")


class UsernameRef(Model):
    """A key of a Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret.")
    key: str = _key("username")


class PasswordRef(Model):
    """A key of a Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret.")
    key: str = _key("password")


class BundleRef(Model):
    """A key of a Secret or ConfigMap in the same namespace."""

    name: DnsName = Field(description="Name of the object.")
    key: str = _key("ca.crt")


class Authorization(Model):
    """Authorization: Bearer."""

    credentials: TokenRef = Field(description="The bearer token. Read again when it changes.")


class BasicAuth(Model):
    """Authorization: Basic."""

    username: UsernameRef = Field(description="The user name.")
    password: PasswordRef = Field(description="The password.")


class CertificateAuthority(Model):
    """The place of PEM certificates."""

    rules = (Rule("set either secret or configMap", differ(present("secret"), present("configMap"))),)
    secret: BundleRef | None = Field(None, description="In a Secret.")
    config_map: BundleRef | None = Field(None, description="In a ConfigMap.")


class TlsConfig(Model):
    """The proof of the server's identity."""

    ca: CertificateAuthority = Field(
        description="Authorities to trust instead of the public ones, as PEM certificates.",
    )


class Header(Model):
    """A header of every request."""

    rules = (
        Rule(
            message="this header is set by the client; credentials go into authorization or basicAuth",
            condition=~one_of(lower_case("name"), _HEADERS_OF_THE_CLIENT),
            field="name",
        ),
    )
    name: str = Field(
        min_length=1,
        max_length=256,
        pattern=r"^[A-Za-z0-9][-A-Za-z0-9]*$",
        description="Name, such as X-Scope-OrgID.",
    )
    value: str = Field(
        min_length=1,
        max_length=1024,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
        description="Its value, for all to see: no secret.",
    )


class PrometheusSpec(Model):
    """A server to read the pools' metrics from, instead of scraping the pods."""

    rules = (
        Rule(
            message="url must be http(s)://host[:port][/path], without user, password, query or fragment",
            condition=matches("url", _URL),
            field="url",
        ),
        Rule(
            message="set authorization or basicAuth, not both",
            condition=~(present("authorization") & present("basicAuth")),
            field="basicAuth",
        ),
        Rule(
            message="tlsConfig needs an https:// url",
            condition=~present("tlsConfig") | starts_with("url", "https://"),
            field="tlsConfig",
        ),
    )
    url: str = Field(
        min_length=8,
        max_length=1024,
        description="Base URL of a server with Prometheus's query API, such as https://host:9090/path.",
    )
    authorization: Authorization | None = Field(None, description="Bearer token to send.")
    basic_auth: BasicAuth | None = Field(None, description="User name and password to send.")
    tls_config: TlsConfig | None = Field(None, description="Trust for https. Default: the public authorities.")
    headers: list[Header] = Field(
        [],
        max_length=16,
        description="Further headers, such as a tenant's X-Scope-OrgID.",
        json_schema_extra=list_map("name"),
    )
