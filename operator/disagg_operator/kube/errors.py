"""PURE: The errors of calls to the API server, named by what the caller must do.

KubeError
├── Retry(after_s)   overloaded, unreachable or timed out: the same call may succeed later
├── Conflict         the object has changed since it was read: read it again
├── Gone             the list can't be continued from here: list again
├── NotFound         the object, its namespace or its API does not exist
├── Invalid          the API server rejects this object: no retry helps until the input changes
├── Terminating      the namespace is being deleted: nothing can be created in it any more
├── Denied           admission control rejects this object: a policy, a webhook or a quota
├── Forbidden        the operator's role or its credentials don't allow the call
└── NotLeading       another operator may lead, so this one must not write
"""

from __future__ import annotations

import re
from collections.abc import Sequence

# A namespace that is being deleted stays so until it is gone.
_TERMINATING = "because it is being terminated"
# For built-in kinds, the API server answers with 500 and one of these messages if an applied object
# has a wrong type, an unknown field, or a quantity that is none. No retry can help then.
_UNTYPED = ("failed to create typed patch object", "failed to convert new object")
# What it says of a field is "(NAME; VERSION): .spec.a[name="b"].c: expected boolean, ...".
_TYPED_FIELD = re.compile(r"\): \.(\S+?): (.+)", re.DOTALL)
# The authorizer speaks of a user; whatever else forbids a write looks at the object.
_NO_RIGHT = re.compile(r"is forbidden: user ", re.IGNORECASE)
_DENIED = re.compile(r"is forbidden: |denied (the )?request")
# A webhook answers with any status that it likes, and a policy with one of several.
_DENIED_BY_NAME = re.compile(
    r"admission webhook \"[^\"]*\" denied the request|ValidatingAdmissionPolicy .* denied request"
)

FieldError = tuple[str, str]
"""The path of a field as the API server writes it, and what is wrong with it."""


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
    """Raised when the API server rejects the object; no retry helps until the input changes.

    `fields` has the fields that it names, if it names any.
    """

    def __init__(self, message: str, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


class Denied(KubeError):
    """Raised when admission control rejects the object: a policy, a webhook or a quota.

    It helps to change the object, or what forbids it. `fields` has the fields that are named, if
    any are.
    """

    def __init__(self, message: str, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(message)
        self.fields = tuple(fields)


class Terminating(KubeError):
    """Raised when the namespace is being deleted, so that nothing can be created in it any more."""


class Forbidden(KubeError):
    """Raised when the operator's role or credentials don't allow the call."""


class NotLeading(KubeError):
    """Raised, before anything is sent, for a write of an operator that does not lead."""


def from_status(
    code: int, what: str, message: str, after_s: float | None, fields: Sequence[FieldError] = ()
) -> KubeError:
    """Return the error for an HTTP status of 300 or above. `what` is the verb and the path.

    `fields` are the causes that the answer lists.
    """
    text = f"{what}: {code} {message[:1000]}"
    if _DENIED_BY_NAME.search(message):
        return Denied(text, fields)
    if code == 404:
        return NotFound(text)
    if code == 409:
        return Conflict(text)
    if code == 410:
        return Gone(text)
    if code == 403 and _TERMINATING in message:
        return Terminating(text)
    if code == 401 or (code == 403 and (_NO_RIGHT.search(message) or not _DENIED.search(message))):
        return Forbidden(text)
    if code < 500 and _DENIED.search(message) and code != 429:
        return Denied(text, fields)
    if code == 500 and any(words in message for words in _UNTYPED):
        named = _TYPED_FIELD.search(message)
        return Invalid(text, fields if named is None else [(named[1], named[2])])
    if code == 429 or code >= 500:
        return Retry(text, after_s)
    return Invalid(text, fields)
