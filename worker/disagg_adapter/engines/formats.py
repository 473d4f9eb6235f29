"""PURE: What engines write in other ways than the protocol: formats, numbers, errors and names."""

from __future__ import annotations

import hashlib
import json

from disagg_adapter.engines.contract import EngineFault
from disagg_wire import codes

_META = frozenset("\\.^$*+?{}[]|()/")
_CONTROL = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
# What stands for a probability of zero. JSON has no infinity.
_LEAST_LOGPROB = -9999.0


def choice_regex(value: str) -> str:
    """Return a regular expression for exactly the strings of a JSON list.

    Only what has a meaning in every dialect is escaped: the grammar backends of engines do not know
    all escapes of Python's.
    """
    choices: list[str] = json.loads(value)
    return "(" + "|".join("".join(_escaped(c) for c in choice) for choice in choices) + ")"


def _escaped(character: str) -> str:
    return f"\\{character}" if character in _META else _CONTROL.get(character, character)


def logprob_of(value: float) -> float:
    """Return a log probability that can be written as JSON."""
    return max(float(value), _LEAST_LOGPROB) if value == value else _LEAST_LOGPROB


def name_of(text: str) -> str:
    """Return a name of 32 characters for a text of any length.

    Names of one length are never the beginning of each other.
    """
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fault_of(status: int | None, message: str, code: str) -> EngineFault:
    """Return the error for the status of an answer, or of an error in a stream; `code` is that of
    failures of the engine.
    """
    if status in (400, 404, 413, 422):
        return EngineFault(codes.INVALID_REQUEST, message, retryable=False)
    # Decode of SGLang that is out of memory ends requests with 503.
    return EngineFault(codes.NO_CAPACITY if status in (429, 503) else code, message)
