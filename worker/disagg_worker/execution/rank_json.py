"""PURE: JSON objects of the other ranks."""

from __future__ import annotations

import json
from typing import Any


def loads(content: bytes) -> dict[str, Any]:
    """Raises ValueError for anything but an object."""
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"not an object: {found!r}")
    return found
