"""PURE: The admission rule.

A rule is stated once, beside the model that it concerns, and gives both the CEL of the CRD and the
refusal of the parser.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from disagg_operator.api.expressions import Expression


@dataclass(frozen=True, slots=True)
class Rule:
    """A condition on a model, and the message with which a model that breaks it is refused.

    `field` is the path of the field to blame, or "" for the model itself. `further` is the part of
    the condition that CEL cannot express, such as whether two quantities are the same. The API
    server accepts what only this part refuses.
    """

    message: str
    condition: Expression
    field: str = ""
    further: Callable[[Any], bool] | None = None

    def holds(self, model: BaseModel) -> bool:
        """Return whether a model meets the condition."""
        return bool(self.condition.value(model)) and (self.further is None or self.further(model))

    def as_cel(self) -> dict[str, str]:
        """Return the rule as an item of x-kubernetes-validations."""
        out = {"rule": self.condition.cel, "message": self.message}
        # The schema of metadata belongs to Kubernetes: a fieldPath into it is rejected.
        if self.field and not self.field.startswith("metadata."):
            out["fieldPath"] = f".{self.field}"
        return out
