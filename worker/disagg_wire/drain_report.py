"""PURE: What a process says of its drain in the termination message of its container."""

from __future__ import annotations

import json
from collections.abc import Mapping

_DRAIN = "drain"
_CUT = "cut"
_MOST = 1 << 31


def message_of(cut: int) -> str:
    """Return the termination message of a process that had to cut off so many requests."""
    return json.dumps({_DRAIN: {_CUT: cut}})


def cut_of(text: str) -> int | None:
    """Return the requests that a process cut off, or None if its last message is about no drain."""
    if not text.startswith("{"):
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    drain = found.get(_DRAIN)
    cut = drain.get(_CUT) if isinstance(drain, Mapping) else None
    return cut if type(cut) is int and 0 <= cut < _MOST else None
