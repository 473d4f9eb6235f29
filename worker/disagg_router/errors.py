"""PURE: The errors of the router, by what the caller must do.

ApiError         goes to the client, in OpenAI's form
AttemptFailed    this attempt on this pair failed; another may succeed
NoRoom           a pool is full (or empty) now: wait
"""

from __future__ import annotations

from typing import Any

from disagg_wire import codes

# The reason of an attempt for which this process had no descriptor or no memory.
ROUTER_EXHAUSTED = "router_exhausted"


class ApiError(Exception):
    """An error that is the answer to the client. `retry_after_s` is sent as Retry-After."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def kind(self) -> str:
        if self.status == 401:
            return "authentication_error"
        if self.status == 404:
            return "not_found_error"
        if self.status == 429:
            return "rate_limit_error"
        return "invalid_request_error" if self.status < 500 else "server_error"

    def body(self) -> dict[str, Any]:
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


class AttemptFailed(Exception):
    """Raised when an attempt failed and another may succeed.

    `blame` lists what should be avoided for a while: incarnations, or "prefill|decode" pairs of
    them.
    """

    def __init__(self, message: str, *, reason: str, blame: tuple[str, ...] = (), retryable: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.blame = blame
        self.retryable = retryable

    def for_client(self) -> ApiError:
        """Return the error that the client gets when no further attempt is made."""
        if self.reason == codes.PROMPT_TOO_LONG:
            return ApiError(400, f"the prompt is too long: {self}", code="context_length_exceeded")
        if self.reason == codes.INVALID_REQUEST:
            return ApiError(400, f"the request was refused: {self}", code="invalid_value")
        if self.reason == codes.DEADLINE_EXCEEDED:
            return ApiError(504, "the request was not finished in time", code="deadline_exceeded")
        return ApiError(503, f"every attempt failed, the last: {self.reason}", code="workers_failed", retry_after_s=1)


class NoRoom(Exception):
    """Raised when no worker of `pool` takes the request now, and no worker is to blame.

    `reason` is the error code of the protocol. `broke_off` is set if a worker had taken the request
    and gave it back, so that the request goes on elsewhere.
    """

    def __init__(self, pool: str, message: str, *, reason: str = codes.NO_CAPACITY, broke_off: bool = False) -> None:
        super().__init__(message)
        self.pool = pool
        self.reason = reason
        self.broke_off = broke_off
