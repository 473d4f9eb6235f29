"""PURE: how a DisaggDeployment names its Prometheus. Names as in the Prometheus operator, headers as in the Gateway API."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from disagg_operator.api import checks
from disagg_operator.api.base import DnsName, Model, cel, list_map, rules


def _key(default: str) -> str:
    """A key of a Secret or ConfigMap."""
    found: str = Field(default, min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="Key inside it.")
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
    """Where PEM certificates are."""

    model_config = ConfigDict(json_schema_extra=rules(cel("has(self.secret) != has(self.configMap)", checks.CA_XOR)))
    secret: BundleRef | None = Field(None, description="In a Secret.")
    config_map: BundleRef | None = Field(None, description="In a ConfigMap.")


class TlsConfig(Model):
    """How the server proves who it is."""

    ca: CertificateAuthority = Field(description="Authorities to trust instead of the public ones, as PEM certificates.")


class Header(Model):
    """A header of every request."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(f"!(self.name.lowerAscii() in {list(checks.RESERVED_HEADERS)})", checks.RESERVED_HEADER, ".name"),
        )
    )
    name: str = Field(min_length=1, max_length=256, pattern=r"^[A-Za-z0-9][-A-Za-z0-9]*$", description="Name, such as X-Scope-OrgID.")
    value: str = Field(min_length=1, max_length=1024, pattern=r"^[!-~]([ -~]*[!-~])?$", description="Its value, for all to see: no secret.")


class PrometheusSpec(Model):
    """Where to read the pools' metrics instead of scraping the pods."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            cel(f"self.url.matches(r'{checks.PROMETHEUS_URL}')", checks.BAD_PROMETHEUS_URL, ".url"),
            cel("!(has(self.authorization) && has(self.basicAuth))", checks.AUTH_XOR, ".basicAuth"),
            cel("!has(self.tlsConfig) || self.url.startsWith('https://')", checks.TLS_NEEDS_HTTPS, ".tlsConfig"),
        )
    )
    url: str = Field(
        min_length=8, max_length=1024, description="Base URL of a server with Prometheus's query API, such as https://host:9090/path."
    )
    authorization: Authorization | None = Field(None, description="Bearer token to send.")
    basic_auth: BasicAuth | None = Field(None, description="User name and password to send.")
    tls_config: TlsConfig | None = Field(None, description="Trust for https. Default: the public authorities.")
    headers: list[Header] = Field(
        [], max_length=16, description="Further headers, such as a tenant's X-Scope-OrgID.", json_schema_extra=list_map("name")
    )
