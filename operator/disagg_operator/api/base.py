"""PURE: what all models of the API share, and the field types with their bounds."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

GROUP, VERSION = "disagg.dev", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

_BYTES = r"^[0-9]{1,15}(\.[0-9]{1,6})?(k|M|G|T|Ki|Mi|Gi|Ti)?$"
_NUMBER = r"^(0\.[0-9]{0,2}[1-9]|[1-9][0-9]{0,5}(\.[0-9]{1,3})?)$"


def _int_or_string(pattern: str, maximum: int) -> Any:
    """Pydantic's and the API server's checks of an int-or-string; the latter's pattern reaches strings only, its minimum numbers only."""

    def check(value: str | int) -> str | int:
        if isinstance(value, bool) or not re.fullmatch(pattern, str(value)) or (isinstance(value, int) and not 1 <= value <= maximum):
            raise ValueError(f"must match {pattern} and be above 0")
        return value

    extra: dict[str, Any] = {"x-kubernetes-int-or-string": True, "pattern": pattern, "minimum": 1, "maximum": maximum}
    return Annotated[str | int, Field(json_schema_extra=extra, union_mode="left_to_right"), AfterValidator(check)]


_ANY_QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

if TYPE_CHECKING:
    Quantity = str | int
    ByteQuantity = str | int
    PositiveNumber = str | int
else:
    Quantity = _int_or_string(_ANY_QUANTITY, 1 << 50)
    ByteQuantity = _int_or_string(_BYTES, 1 << 50)
    PositiveNumber = _int_or_string(_NUMBER, 999_999)
DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
ResourceName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._/]*[A-Za-z0-9])?$")]
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


def list_map(key: str) -> dict[str, Any]:
    """A list whose items have a unique key: server-side apply merges it item by item."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}


def rules(*items: dict[str, Any]) -> dict[str, Any]:
    return {"x-kubernetes-validations": list(items)}
