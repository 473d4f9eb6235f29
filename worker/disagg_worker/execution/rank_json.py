"""PURE: The JSON objects in messages between ranks."""

from __future__ import annotations

import json
from typing import Any


def loads(content: bytes) -> dict[str, Any]:
    """Parse a JSON object. Raises ValueError for anything else."""
    found = json.loads(content)
    if not isinstance(found, dict):
        raise ValueError(f"not an object: {found!r}")
    return found
