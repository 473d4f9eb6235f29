"""PURE: Writes frozen dataclasses as plain JSON and reads them back, guided by their annotations.

JSON has no NaN and no infinity: NaN is written as null, and an infinite number as the largest
finite float with its sign; both are read back as they were. A missing field gets its default, and
so does a null whose default is infinite (releases before 0.2 wrote infinity as null in saved
states).
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

T = TypeVar("T")
_INFINITE = sys.float_info.max


class CodecError(ValueError):
    """Raised for JSON that does not fit the type; the message names the field."""


def plain(value: Any, digits: int | None = None) -> Any:
    """Return dataclasses, tuples, maps and numbers in the form of JSON.

    With `digits`, floats are rounded to that number of significant digits.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name), digits) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v, digits) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, digits) for v in value]
    if not isinstance(value, float):
        return value
    if math.isnan(value):
        return None
    if math.isinf(value):
        return math.copysign(_INFINITE, value)
    return value if digits is None else float(f"{value:.{digits}g}")


def parse(kind: type[T], raw: Any, path: str = "") -> T:
    """Return the dataclass that `plain` was given. Raises CodecError, which names the field."""
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
        return _float(raw, path)
    if not isinstance(raw, kind) or (kind is int and isinstance(raw, bool)):
        raise CodecError(f"{path}: {raw!r} is not of type {kind.__name__}")
    return raw


def _float(raw: Any, path: str) -> float:
    if raw is None:
        return math.nan
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise CodecError(f"{path}: {raw!r} is not a number")
    return math.copysign(math.inf, raw) if abs(raw) == _INFINITE else float(raw)


def _dataclass(kind: Any, raw: Any, path: str) -> Any:
    if not isinstance(raw, dict):
        raise CodecError(f"{path}: not a map")
    hints, defaults = get_type_hints(kind), {f.name: f.default for f in dataclasses.fields(kind)}
    if unknown := sorted(set(raw) - set(hints)):
        raise CodecError(f"{path}.{unknown[0]}: unknown field")
    values = {
        name: _value(hints[name], value, f"{path}.{name}")
        for name, value in raw.items()
        if value is not None or not _is_infinite(defaults[name])
    }
    try:
        return kind(**values)
    except TypeError as error:
        raise CodecError(f"{path}: {error}") from None


def _is_infinite(default: Any) -> bool:
    return isinstance(default, float) and math.isinf(default)


def _tuple(args: tuple[Any, ...], raw: Any, path: str) -> Any:
    if not isinstance(raw, list | tuple):
        raise CodecError(f"{path}: not a list")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_value(args[0], v, f"{path}[{i}]") for i, v in enumerate(raw))
    if len(raw) != len(args):
        raise CodecError(f"{path}: {len(raw)} items, not {len(args)}")
    return tuple(_value(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(args, raw, strict=True)))
