"""PURE: The time that a worker has spent on a prompt, as it tells routers with the first token.

It is the field `spent` of an event, which routers of other releases ignore. A router takes what it
understands: durations only, since the clocks of two machines differ.
"""

from __future__ import annotations

from typing import Any, NamedTuple

FIELD = "spent"
# Raised when a field gets another meaning; further fields may come without.
_VERSION = 1
# Longer than any request may take: such a number is no duration.
_MOST_S = 7 * 86400.0


class Spent(NamedTuple):
    """Durations in seconds."""

    wait_s: float
    """From the arrival of the prompt at the engine to the beginning of its computation."""
    compute_s: float
    """From then to the first token, with the waits between the parts of a long prompt."""

    def to_json(self) -> dict[str, Any]:
        """Return the value of the field."""
        return {"version": _VERSION, "wait_s": round(self.wait_s, 6), "compute_s": round(self.compute_s, 6)}


def parse(value: object) -> Spent | None:
    """Return what the field of an event says, or None if that is nothing that is known here."""
    if not isinstance(value, dict) or value.get("version") != _VERSION:
        return None
    wait_s, compute_s = _seconds(value.get("wait_s")), _seconds(value.get("compute_s"))
    return None if wait_s is None or compute_s is None else Spent(wait_s, compute_s)


def _seconds(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value <= _MOST_S else None
