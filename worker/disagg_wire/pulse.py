"""PURE: The beat that a worker sends each router, several times a second (docs/protocol.md).

It comes from a process of its own, so that neither the engine nor the event loop can hold it up. It
says how far both have come.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

# The seconds between two beats.
INTERVAL_S = 0.25
_MAX_BYTES = 1024
# Thirty years: a step that hangs may have begun long ago.
_MAX_S = 1e9


@dataclass(frozen=True, slots=True)
class Beat:
    """The state of a worker at one moment. Durations are in seconds."""

    steps: int = 0
    """The number of steps that the engine has begun."""
    step_s: float | None = None
    """How long the step that runs now has taken so far; None between steps."""
    expected_s: float = 0.0
    """How long it may take, as the engine said before it began."""
    loop_s: float = 0.0
    """How long ago the process's event loop was last heard of."""

    def line(self) -> bytes:
        """Return it as a line of JSON."""
        step_s = None if self.step_s is None else round(self.step_s, 4)
        content = {
            "steps": self.steps,
            "step_s": step_s,
            "expected_s": round(self.expected_s, 4),
            "loop_s": round(self.loop_s, 4),
        }
        return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def parse(line: bytes) -> Beat:
    """Return the beat of a line. Raises ValueError. Fields that are not known are ignored."""
    if len(line) > _MAX_BYTES:
        raise ValueError("beat: too long")
    try:
        content = json.loads(line)
    except RecursionError:
        raise ValueError("beat: too deep") from None
    if not isinstance(content, dict):
        raise ValueError("beat: no object")
    steps, step_s = content.get("steps"), content.get("step_s")
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise ValueError("beat: steps")
    return Beat(
        steps, None if step_s is None else _seconds(step_s), _seconds(content.get("expected_s")),
        _seconds(content.get("loop_s")),
    )  # fmt: skip


def _seconds(value: object) -> float:
    # A comparison, unlike a conversion, bears integers beyond every float. NaN is not in the range.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_S:
        raise ValueError("beat: no duration")
    return float(value)
