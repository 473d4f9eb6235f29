"""PURE: the predictive policy's state as plain JSON and back, some 20 KB."""

from __future__ import annotations

import math
from dataclasses import asdict, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints

from disagg_operator.autoscaling.policy.memory import State

_VERSION = 2


def to_json(state: State) -> dict[str, Any]:
    """Plain JSON; NaN and infinity as null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float):
            return float(f"{value:.9g}") if math.isfinite(value) else None
        return value

    return {"version": _VERSION, **plain(asdict(state))}


def from_json(raw: dict[str, Any]) -> State:
    """The state that `to_json` wrote, what it lacks at its default; the empty one for another
    version or anything that does not fit.
    """
    try:
        if raw["version"] != _VERSION:
            return State()
        found = _read(State, {key: value for key, value in raw.items() if key != "version"})
    except (KeyError, TypeError, ValueError, OverflowError):
        return State()
    return found if isinstance(found, State) else State()


def _read(kind: Any, raw: Any) -> Any:
    """`raw` as a value of this type: a dataclass, a tuple or a number."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        known = {f.name: f for f in fields(kind)}
        if unknown := set(raw) - set(known):
            raise ValueError(f"unknown: {unknown}")
        values = {
            name: _read(hints[name], value)
            for name, value in raw.items()
            if not (value is None and _infinite(known[name].default))
        }
        return kind(**values)  # type: ignore[operator]
    if get_origin(kind) is tuple:
        if not isinstance(raw, list):
            raise TypeError("not a list")
        inner = get_args(kind)
        if inner[-1] is Ellipsis:
            return tuple(_read(inner[0], value) for value in raw)
        return tuple(_read(one, value) for one, value in zip(inner, raw, strict=True))
    if kind is float:
        return math.nan if raw is None else float(raw)
    return int(raw)


def _infinite(default: Any) -> bool:
    return isinstance(default, float) and math.isinf(default)
