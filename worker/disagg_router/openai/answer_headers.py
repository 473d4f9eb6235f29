"""The name of the request in every answer."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUEST_ID = b"x-request-id"
# The ID of the trace of a request, if requests are traced.
TRACE_ID = "x-disagg-trace-id"
# The place of the name in the scope of a request.
SHOWN_ID = "disagg.shown_id"
_ACCEPTED = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")


class AnswerHeaders:
    """The router's application, with the name in each answer.

    It is the client's own, if it gave one that is short and plain, so that it stands in the log as
    it was given.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = next((value for name, value in scope["headers"] if name == REQUEST_ID), b"")
        shown = given if _ACCEPTED.fullmatch(given) else secrets.token_hex(12).encode()
        scope[SHOWN_ID] = shown.decode()

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                # The service beside the pools has names of its own.
                if all(name != REQUEST_ID for name, _ in headers):
                    headers.append((REQUEST_ID, shown))
                message = {**message, "headers": headers}
            await send(message)

        return await self._app(scope, receive, with_headers)
