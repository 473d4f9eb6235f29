"""PURE: The environment variables of a worker that `engine.env` must not set."""

from __future__ import annotations

from disagg_wire.environment import WorkerVariable


def reserved_environment() -> tuple[str, ...]:
    """Return the names of the variables that only the operator sets, in alphabetical order.

    A second value would contradict the spec, and with it the status.
    """
    return tuple(sorted(str(name) for name in WorkerVariable))
