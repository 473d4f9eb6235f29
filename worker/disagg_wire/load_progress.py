"""PURE: The field of `info` in which a worker reports how much of its model it has loaded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

LOADING = "loading"
READ_BYTES = "read_bytes"
TOTAL_BYTES = "total_bytes"


def loading_json(read_bytes: int, total_bytes: int) -> dict[str, int]:
    """Return the value of the field."""
    return {READ_BYTES: read_bytes, TOTAL_BYTES: total_bytes}


def loaded_bytes(info: Mapping[str, Any]) -> int:
    """Return how many bytes the worker of an `info` has loaded; 0 if it does not say."""
    loading = info.get(LOADING)
    found = loading.get(READ_BYTES) if isinstance(loading, Mapping) else None
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0
