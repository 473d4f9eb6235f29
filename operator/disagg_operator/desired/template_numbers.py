"""PURE: The quantities and numbers of a pod template that the API server refuses without a path.

It answers "quantities must match the regular expression" or "cannot convert float64 to int64", and
not of which field it speaks.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_QUANTITY = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei|[eE][+-]?[0-9]+)?")
# The maps whose values are quantities, and the fields that are one.
_MAPS = ("requests", "limits", "capacity", "overhead")
_FIELDS = ("sizeLimit", "divisor")
_INT64 = 1 << 63


def number_problems(value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the reason of every number in a part of a template that can't be read."""
    if isinstance(value, dict):
        for key, item in value.items():
            here = f"{path}[{key}]" if re.search(r"[^A-Za-z0-9_-]", key) else f"{path}.{key}"
            if key in _MAPS and isinstance(item, dict):
                for name, amount in item.items():
                    shown = f"[{name}]" if re.search(r"[^A-Za-z0-9_-]", name) else f".{name}"
                    yield from _quantity(amount, f"{here}{shown}")
            elif key in _FIELDS:
                yield from _quantity(item, here)
            else:
                yield from number_problems(item, here)
    elif isinstance(value, list):
        for index, item in enumerate(value):
            name = item.get("name") if isinstance(item, dict) else None
            yield from number_problems(item, f"{path}[{name if isinstance(name, str) else index}]")
    elif isinstance(value, float) and not value.is_integer():
        yield path, f"{value} is no whole number"
    elif isinstance(value, int | float) and not -_INT64 <= value < _INT64:
        yield path, "is too large a number"


def _quantity(amount: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(amount, bool) or not isinstance(amount, str | int | float) or not _QUANTITY.fullmatch(str(amount)):
        yield path, f"{str(amount)[:64]!r} is no quantity, such as 500m, 2 or 10Gi"
