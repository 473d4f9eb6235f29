"""Refusals and failures as answers, in the form of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from disagg_router.errors import ApiError


def refusal(error: ApiError, headers: Mapping[str, str] | None = None) -> Response:
    headers = dict(headers or {})
    # Whoever may succeed later is told when.
    if error.retry_after_s is not None or error.status in (429, 503):
        headers["retry-after"] = str(error.retry_after_s or 1)
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return JSONResponse(error.body(), error.status, headers)


def internal() -> ApiError:
    return ApiError(500, "internal error; see the router's log", code="internal")


async def http_refusal(request: Request, error: Exception) -> Response:
    """Answer 404 and 405 in OpenAI's form, too; 405 lists the methods that are allowed."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    said, code = {404: ("no such endpoint", "not_found"), 405: ("not allowed", "method_not_allowed")}.get(
        status, ("failed", "internal")
    )
    headers = error.headers if isinstance(error, HTTPException) else None
    return refusal(ApiError(status, f"{request.method} {request.url.path[:256]}: {said}", code=code), headers)
