"""PURE: What a call to the API server can end in, named by what the caller must do.

KubeError
├── Retry(after_s)   overloaded, unreachable or timed out: the same call may succeed later
├── Conflict         the object has changed since it was read: read again
├── Gone             the list can't be continued from here: list again
├── NotFound         the object, its namespace or its API isn't there
├── Invalid(why)     the API server refuses this object: no retry helps until the input changes
└── Forbidden        the operator's role doesn't allow it, or its credentials don't hold
"""

from __future__ import annotations

# How an apply of a wrong type or of an unknown field is answered, for built-in kinds: with 500,
# though no retry can help.
_UNTYPED = "failed to create typed patch object"


class KubeError(Exception):
    """Any failed call; the message names verb and path, never a body or a token."""


class Retry(KubeError):
    def __init__(self, message: str, after_s: float | None = None) -> None:
        super().__init__(message)
        self.after_s = after_s


class Conflict(KubeError):
    pass


class Gone(KubeError):
    pass


class NotFound(KubeError):
    pass


class Invalid(KubeError):
    pass


class Forbidden(KubeError):
    pass


def from_status(code: int, what: str, message: str, after_s: float | None) -> KubeError:
    """The error of an HTTP status >= 300. `what` is verb and path."""
    text = f"{what}: {code} {message[:1000]}"
    if code == 404:
        return NotFound(text)
    if code == 409:
        return Conflict(text)
    if code == 410:
        return Gone(text)
    if code in (401, 403):
        return Forbidden(text)
    if code == 500 and _UNTYPED in message:
        return Invalid(text)
    if code == 429 or code >= 500:
        return Retry(text, after_s)
    return Invalid(text)
