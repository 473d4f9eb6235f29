"""PURE: The models of spec.observability.tracing."""

from __future__ import annotations

from pydantic import Field

from disagg_operator.api.base import DnsName, Model
from disagg_operator.api.expressions import present, starts_with
from disagg_operator.api.rules import Rule

# Without user and password: everybody who may read the resource would see them.
_HOST = r"([A-Za-z0-9_][-._A-Za-z0-9]*|\[[0-9A-Fa-f:.]+\])"
_URL = rf"^https?://{_HOST}(:[0-9]{{1,5}})?(/[-._~A-Za-z0-9/]*)?$"


def _key(default: str) -> str:
    """Return the field for a key of a Secret."""
    found: str = Field(
        default, min_length=1, max_length=253, pattern=r"^[-._a-zA-Z0-9]+$", description="Key inside it."
    )
    return found


class CollectorHeadersRef(Model):
    """A key of a Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret.")
    key: str = _key("headers")


class CollectorAuthorityRef(Model):
    """A key of a Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret.")
    key: str = _key("ca.crt")


class TracingSpec(Model):
    """Traces of requests, which the routers send to a collector by OTLP over HTTP."""

    rules = (
        Rule(
            message="caSecretRef needs an https:// endpoint",
            condition=~present("caSecretRef") | starts_with("endpoint", "https://"),
            field="caSecretRef",
        ),
    )
    endpoint: str = Field(
        max_length=1024,
        pattern=_URL,
        description="Where the collector takes OTLP over HTTP, such as http://collector.observability:4318; "
        "/v1/traces is appended.",
    )
    sampling_ratio: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of the traces that is kept of requests that met the objectives at the first attempt. All "
        "others are kept.",
    )
    trust_parent: bool = Field(
        False,
        description="Continue the trace of the client's header traceparent, and keep it if and only if the client "
        "records it. Otherwise a request gets a trace of its own that links to the client's.",
    )
    headers_secret_ref: CollectorHeadersRef | None = Field(
        None, description="Secret whose key holds headers for the collector, `Name: value` on each line."
    )
    ca_secret_ref: CollectorAuthorityRef | None = Field(
        None,
        description="Secret whose key holds the authorities to trust instead of the public ones, as PEM certificates.",
    )
