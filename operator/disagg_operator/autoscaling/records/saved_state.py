"""PURE: The saved form of the predictive policy's state, about 20 KB of plain JSON."""

from __future__ import annotations

from typing import Any

from disagg_operator.autoscaling.policy.memory import State
from disagg_operator.autoscaling.records import codec, former_releases

_VERSION = 2
_DIGITS = 9


def to_json(state: State) -> dict[str, Any]:
    """Return the state as plain JSON with its version. Floats have 9 significant digits."""
    return {"version": _VERSION, **codec.plain(state, _DIGITS)}


def from_json(raw: dict[str, Any]) -> State:
    """Return the state that `to_json` wrote. Missing fields get their defaults.

    Another version, or content that does not fit, gives the empty state, which is a safe start.
    """
    if not isinstance(raw, dict) or raw.get("version") != _VERSION:
        return State()
    try:
        kept = former_releases.state({name: value for name, value in raw.items() if name != "version"})
        return codec.parse(State, kept)
    except (codec.CodecError, OverflowError):
        return State()
