"""PURE: Where a measured profile comes from: its model, engine, hardware and versions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from disagg_operator.performance.model_shape import named
from disagg_operator.performance.profile import ProfileError


@dataclass(frozen=True, slots=True)
class Origin:
    """What was measured. What is not known is empty."""

    model: str = ""
    """The name of the model, or of its folder."""
    engine: str = ""
    engine_version: str = ""
    hardware: str = ""
    """The accelerator, by the name that `disagg plan` has for it if it has one."""
    disagg_version: str = ""
    """The version that measured."""
    measured_at: str = ""
    """The date."""
    worst_error: float = 0.0
    """The largest relative error of a fitted time."""

    def words(self) -> str:
        """Return the origin in words."""
        engine = " ".join(filter(None, (self.engine, self.engine_version)))
        by = " ".join(filter(None, ("disagg", self.disagg_version)))
        when = f" on {self.measured_at}" if self.measured_at else ""
        return (
            f"{self.model or 'an unnamed model'} on {self.hardware or 'unnamed hardware'}"
            f"{f' with {engine}' if engine else ''}, measured by {by}{when}, within {100 * self.worst_error:.0f} %"
        )

    def refusal(self, file: str, model: str, hardware: str = "") -> str | None:
        """Return why a profile of this origin is none of a model on a hardware, or None.

        What either side does not know is not compared.
        """
        if self.model and model and not same_model(self.model, model):
            return f"{file}: is a profile of the model {self.model}, not of {model}"
        if self.hardware and hardware and self.hardware.lower() != hardware.lower():
            return f"{file}: is a profile of {self.hardware}, not of {hardware}"
        return None


def same_model(one: str, other: str) -> bool:
    """Return whether two names are those of one model, in any variant that has the same shape.

    They may be names of Hugging Face, names of folders or known names.
    """
    short = [name.rstrip("/").rsplit("/", 1)[-1].lower() for name in (one, other)]
    shapes = [named(name) for name in short]
    known = shapes[0] is not None and shapes[1] is not None and shapes[0].name == shapes[1].name
    return short[0] == short[1] or known


def to_raw(origin: Origin) -> dict[str, Any]:
    """Return an origin as the JSON object that `parse` reads."""
    return asdict(origin)


def parse(file: str, raw: object) -> Origin:
    """Parse an origin. Raises ProfileError, which names the file.

    Fields of later releases are ignored.
    """
    if not isinstance(raw, Mapping):
        raise ProfileError(f"{file}: measured: must be an object")
    found = {}
    for field in fields(Origin):
        if field.name not in raw:
            continue
        value = raw[field.name]
        good = isinstance(value, int | float) if field.name == "worst_error" else isinstance(value, str)
        if not good or isinstance(value, bool):
            raise ProfileError(f"{file}: measured.{field.name}: {value!r} is of the wrong type")
        found[field.name] = value
    return Origin(**found)
