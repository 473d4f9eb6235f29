"""PURE: The problems that a worker reports about itself, in `info` and in its termination message.

A worker that cannot become ready answers `info` with a field `problem` that holds a reason and a
message. A worker that ends because of it leaves the same object, as JSON, in its termination
message.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# The field of `info`, and its two parts.
PROBLEM = "problem"
PROBLEM_REASON = "reason"
PROBLEM_MESSAGE = "message"

# The reasons of adapters and of the operator, which are reasons of conditions.
UNKNOWN_ENGINE_VERSION = "UnknownEngineVersion"
ENGINE_HUNG = "EngineHung"
MODEL_NOT_SERVED = "ModelNotServed"
CONNECTOR_MISSING = "ConnectorMissing"
MISSING_LIBRARY = "MissingLibrary"
WEIGHTS_REFUSED = "WeightsRefused"
PORT_IN_USE = "PortInUse"
UNKNOWN_FLAG = "UnknownFlag"
ENGINE_OUT_OF_MEMORY = "EngineOutOfMemory"

MAX_PROBLEM_CHARS = 1024
_REASON = re.compile(r"[A-Z][A-Za-z0-9]{0,63}")


@dataclass(frozen=True, slots=True)
class WorkerProblem:
    """A problem in the words of the worker that has it."""

    reason: str
    """One word in CamelCase, for programs."""
    message: str
    """One sentence, for people."""

    def as_json(self) -> dict[str, str]:
        """Return the value of the field `problem`."""
        return {PROBLEM_REASON: self.reason, PROBLEM_MESSAGE: self.message[:MAX_PROBLEM_CHARS]}

    def termination_message(self) -> str:
        """Return the text of a termination message."""
        return json.dumps({PROBLEM: self.as_json()})


def parse_problem(value: Any) -> WorkerProblem | None:
    """Return the problem in a field `problem`, or None if it holds none."""
    if not isinstance(value, Mapping):
        return None
    reason, message = value.get(PROBLEM_REASON), value.get(PROBLEM_MESSAGE, "")
    if not isinstance(reason, str) or not _REASON.fullmatch(reason) or not isinstance(message, str):
        return None
    return WorkerProblem(reason, message[:MAX_PROBLEM_CHARS])


def parse_termination_message(text: str) -> WorkerProblem | None:
    """Return the problem in a termination message, or None if it is another text.

    The message may be the end of a log; then the problem stands on a line of its own.
    """
    for line in reversed(text.splitlines()):
        if not line.startswith("{"):
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, Mapping) and (problem := parse_problem(found.get(PROBLEM))) is not None:
            return problem
    return None
