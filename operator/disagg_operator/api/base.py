"""PURE: what all models of the API share, and the field types with their bounds."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP, VERSION = "disagg.dev", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

Quantity = Annotated[str | int, Field(json_schema_extra={"x-kubernetes-int-or-string": True}, union_mode="left_to_right")]
DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
ResourceName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._/]*[A-Za-z0-9])?$")]
Seconds = Annotated[int, Field(ge=0, le=86_400)]
Replicas = Annotated[int, Field(ge=0, le=1000)]
# Anything goes in: the API server checks it when the rendered pod is applied.
Free = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


class Model(BaseModel):
    """Frozen, camelCase outside, unknown fields kept out (the API server prunes or refuses them before)."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")


def cel(rule: str, message: str, field_path: str | None = None) -> dict[str, Any]:
    """One CEL rule for `json_schema_extra`."""
    out = {"rule": rule, "message": message}
    if field_path is not None:
        out["fieldPath"] = field_path
    return out


def rules(*items: dict[str, Any]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(items)}
