"""PURE: The errors of calls to the API server, named by what the caller must do.

KubeError
├── Retry(after_s)   overloaded, unreachable or timed out: the same call may succeed later
├── Conflict         the object has changed since it was read: read it again
├── Gone             the list can't be continued from here: list again
├── NotFound         the object, its namespace or its API does not exist
├── Invalid          the API server rejects this object: no retry helps until the input changes
├── Terminating      the namespace is being deleted: nothing can be created in it any more
├── Forbidden        the operator's role or its credentials don't allow the call
└── NotLeading       another operator may lead, so this one must not write
"""

from __future__ import annotations

# A namespace that is being deleted stays so until it is gone.
_TERMINATING = "because it is being terminated"
# For built-in kinds, the API server answers with 500 and this message if an applied object has a
# wrong type or an unknown field. No retry can help then.
_UNTYPED = "failed to create typed patch object"


class KubeError(Exception):
    """Raised when a call failed. The message names verb and path, never a body or a token."""


class Retry(KubeError):
    """Raised when the same call may succeed later, after `after_s` seconds if it is set."""

    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class Conflict(KubeError):
    """Raised when the object has changed since it was read."""


class Gone(KubeError):
    """Raised when a list can't be continued because its token has expired."""


class NotFound(KubeError):
    """Raised when the object, its namespace or its API does not exist."""


class Invalid(KubeError):
    """Raised when the API server rejects the object; no retry helps until the input changes."""


class Terminating(KubeError):
    """Raised when the namespace is being deleted, so that nothing can be created in it any more."""


class Forbidden(KubeError):
    """Raised when the operator's role or credentials don't allow the call."""


class NotLeading(KubeError):
    """Raised, before anything is sent, for a write of an operator that does not lead."""


def from_status(code: int, what: str, message: str, after_s: float | None) -> KubeError:
    """Return the error for an HTTP status of 300 or above. `what` is the verb and the path."""
    text = f"{what}: {code} {message[:1000]}"
    if code == 404:
        return NotFound(text)
    if code == 409:
        return Conflict(text)
    if code == 410:
        return Gone(text)
    if code == 403 and _TERMINATING in message:
        return Terminating(text)
    if code in (401, 403):
        return Forbidden(text)
    if code == 500 and _UNTYPED in message:
        return Invalid(text)
    if code == 429 or code >= 500:
        return Retry(text, after_s)
    return Invalid(text)
