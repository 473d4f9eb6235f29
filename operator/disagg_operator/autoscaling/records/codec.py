"""PURE: frozen dataclasses as plain JSON and back, by their annotations.

NaN is null; a field that is missing has its default.
"""

from __future__ import annotations

import dataclasses
import math
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")


class CodecError(ValueError):
    """What was read does not fit; the message names the field."""


def plain(value: Any) -> Any:
    """Dataclasses, tuples, maps and numbers as JSON holds them."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None if math.isnan(value) else math.copysign(1e300, value)
    return value


def parse(kind: type[T], raw: Any, path: str = "") -> T:
    """A dataclass from what `plain` made of it. Raises CodecError naming the field."""
    found: T = _value(kind, raw, path or kind.__name__)
    return found


def _value(kind: Any, raw: Any, path: str) -> Any:
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        inner = [a for a in args if a is not type(None)]
        return None if raw is None else _value(inner[0], raw, path)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, raw, path)
    if origin is tuple:
        return _tuple(args, raw, path)
    if origin is dict:
        if not isinstance(raw, dict):
            raise CodecError(f"{path}: not a map")
        return {str(k): _value(args[1], v, f"{path}.{k}") for k, v in raw.items()}
    if kind is float:
        if raw is None:
            return math.nan
        if isinstance(raw, bool) or not isinstance(raw, int | float):
            raise CodecError(f"{path}: {raw!r} is not a number")
        return float(raw)
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        raise CodecError(f"{path}: {raw!r} is not of the kind {kind.__name__}")
    return raw


def _dataclass(kind: Any, raw: Any, path: str) -> Any:
    if not isinstance(raw, dict):
        raise CodecError(f"{path}: not a map")
    hints = get_type_hints(kind)
    if unknown := sorted(set(raw) - set(hints)):
        raise CodecError(f"{path}.{unknown[0]}: unknown field")
    values = {name: _value(hints[name], value, f"{path}.{name}") for name, value in raw.items()}
    try:
        return kind(**values)
    except TypeError as error:
        raise CodecError(f"{path}: {error}") from None


def _tuple(args: tuple[Any, ...], raw: Any, path: str) -> Any:
    if not isinstance(raw, list | tuple):
        raise CodecError(f"{path}: not a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_value(args[0], v, f"{path}[{i}]") for i, v in enumerate(raw))
    if len(raw) != len(args):
        raise CodecError(f"{path}: {len(raw)} items, not {len(args)}")
    return tuple(_value(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, raw, strict=True)))
