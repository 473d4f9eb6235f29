"""PURE: What a call of the engine can raise, by what the caller must do."""

from __future__ import annotations


class EngineError(Exception):
    """Base of what a caller can act on.

    EngineError
    +-- NoCapacity    no blocks or no place now; the same call may succeed later
    +-- InvalidInput  the request can never succeed here; the message names the field
    +-- ModelError    the model cannot be loaded; the message names the file, field or tensor
    """


class NoCapacity(EngineError):
    """No room now."""


class InvalidInput(EngineError):
    """The request itself is wrong."""


class ModelError(EngineError):
    """The model can't be loaded."""
