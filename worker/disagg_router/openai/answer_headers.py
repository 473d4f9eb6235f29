"""The headers of every answer: the name of the request, and whether its connection is closed."""

from __future__ import annotations

import re
import secrets

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from disagg_router.router import Router

REQUEST_ID = b"x-request-id"
# The place of the name in the scope of a request.
SHOWN_ID = "disagg.shown_id"
_ACCEPTED = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_CLOSE = (b"connection", b"close")


class AnswerHeaders:
    """The router's application, with these headers.

    The name is the client's own, if it gave one that is short and plain, so that it stands in the
    log as it was given. A router that ends lets each connection end with its next answer.
    """

    def __init__(self, app: ASGIApp, router: Router) -> None:
        self._app = app
        self._router = router

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
                if self._router.draining:
                    headers.append(_CLOSE)
                message = message | {"headers": headers}
            await send(message)

        return await self._app(scope, receive, with_headers)
