"""PURE: The fields of a model's configuration that name tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from disagg_protocol.errors import ModelError


def token_ids(raw: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """Return the token IDs in a field that is one, a list of them, or not there.

    Raises ModelError.
    """
    value = raw.get(name)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if any(isinstance(v, bool) or not isinstance(v, int) or v < 0 for v in ids):
        raise ModelError(f"{name}: {value!r} is neither a token id nor a list of them")
    return tuple(ids)
