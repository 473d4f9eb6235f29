"""PURE: the environment variables of a worker that `engine.env` must leave alone."""

from __future__ import annotations

from disagg_wire.environment import WorkerVariable


def reserved_environment() -> tuple[str, ...]:
    """Return the names of the variables that the operator alone sets, in the order of the alphabet.

    A second value would contradict what the spec, and with it the operator's status, says.
    """
    return tuple(sorted(str(name) for name in WorkerVariable))
