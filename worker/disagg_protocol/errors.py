"""PURE: The errors that calls to the engine can raise, grouped by what the caller must do."""

from __future__ import annotations


class EngineError(Exception):
    """The base class of the errors that a caller can act on.

    EngineError
    +-- NoCapacity    no free blocks or slots now; the same call may succeed later
    +-- InvalidInput  the request can never succeed here; the message names the field
    +-- ModelError    the model cannot be loaded; the message names the file, field or tensor
    """


class NoCapacity(EngineError):
    """Raised when the engine has no room now."""


class InvalidInput(EngineError):
    """Raised when the request itself is invalid."""


class ModelError(EngineError):
    """Raised when the model cannot be loaded."""
