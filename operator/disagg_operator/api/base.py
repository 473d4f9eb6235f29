"""PURE: The base of all models of the API, and the types of their fields with their bounds."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from disagg_operator.api.rules import Rule

GROUP, VERSION = "disagg.dev", "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"

_BYTES = r"^[0-9]{1,15}(\.[0-9]{1,6})?(k|M|G|T|Ki|Mi|Gi|Ti)?$"
_NUMBER = r"^(0\.[0-9]{0,2}[1-9]|[1-9][0-9]{0,5}(\.[0-9]{1,3})?)$"


def _no_truth_value(value: Any) -> Any:
    # To pydantic, a truth value is a number too.
    if isinstance(value, bool):
        raise ValueError("must be a number or a text")
    return value


def int_or_string(pattern: str, maximum: int, minimum: int = 1, words: str = "") -> Any:
    """Return the type of an int-or-string that both pydantic and the API server check.

    In a schema, the pattern applies only to strings and the bounds only to numbers. `words` says
    what is allowed, if the pattern does not.
    """

    def check(value: str | int) -> str | int:
        in_bounds = not isinstance(value, int) or minimum <= value <= maximum
        if not in_bounds or not re.fullmatch(pattern, str(value)):
            raise ValueError(words or f"must match {pattern} and be above 0")
        return value

    extra: dict[str, Any] = {
        "x-kubernetes-int-or-string": True,
        "pattern": pattern,
        "minimum": minimum,
        "maximum": maximum,
    }
    return Annotated[
        str | int,
        Field(json_schema_extra=extra, union_mode="left_to_right"),
        BeforeValidator(_no_truth_value),
        AfterValidator(check),
    ]


_ANY_QUANTITY = r"^[0-9]{1,15}(\.[0-9]{1,9})?(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi)?$"

if TYPE_CHECKING:
    Quantity = str | int
    ByteQuantity = str | int
    PositiveNumber = str | int
else:
    Quantity = int_or_string(_ANY_QUANTITY, 1 << 50)
    ByteQuantity = int_or_string(_BYTES, 1 << 50)
    PositiveNumber = int_or_string(_NUMBER, 999_999)
DnsLabel = Annotated[str, Field(min_length=1, max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
DnsName = Annotated[str, Field(min_length=1, max_length=253, pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$")]
ResourceName = Annotated[
    str,
    Field(min_length=1, max_length=253, pattern=r"^[A-Za-z0-9]([-A-Za-z0-9._/]*[A-Za-z0-9])?$"),
]
LabelKey = Annotated[
    str,
    Field(
        min_length=1,
        max_length=317,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9._]{0,61}[A-Za-z0-9])?$",
    ),
]
Arguments = Annotated[list[Annotated[str, Field(min_length=1, max_length=4096)]], Field(max_length=128)]
Replicas = Annotated[int, Field(ge=0, le=1000)]
# Any content is accepted: the API server checks it when the rendered pod is applied.
Free = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


def _add_rules(schema: dict[str, Any], model: type[Model]) -> None:
    """Write the rules of a model into its schema."""
    if model.rules:
        schema["x-kubernetes-validations"] = [rule.as_cel() for rule in model.rules]


class Model(BaseModel):
    """A part of the API: frozen, with camelCase names outside.

    Unknown fields are left out; the API server prunes or rejects them before. `rules` become CEL in
    the CRD and are checked by `parse`.
    """

    model_config = ConfigDict(
        frozen=True,
        alias_generator=to_camel,
        populate_by_name=True,
        extra="ignore",
        json_schema_extra=_add_rules,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    def broken(self) -> Iterator[tuple[str, str]]:
        """Yield the field and the message of each rule that this model itself breaks.

        The rules of its parts are not checked.
        """
        for rule in self.rules:
            if not rule.holds(self):
                yield rule.field, rule.message


class LocalSecret(Model):
    """A Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret.")


class SecretRef(Model):
    """A key of a Secret in the same namespace."""

    name: DnsName = Field(description="Name of the Secret.")
    key: str = Field(
        "token",
        min_length=1,
        max_length=253,
        pattern=r"^[-._a-zA-Z0-9]+$",
        description="Key inside the Secret.",
    )


def list_map(key: str) -> dict[str, Any]:
    """Return the schema of a list that server-side apply merges by the key of its items."""
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [key]}
