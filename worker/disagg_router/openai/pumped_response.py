"""Answers that go to the client piece by piece, whoever makes the pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

T = TypeVar("T")


async def while_connected(receive: Callable[[], Awaitable[Message]], work: Awaitable[T]) -> T:
    """Return the result of the work.

    If the client goes away first, the work is cancelled and ClientDisconnect is raised.
    """

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    task, left = asyncio.ensure_future(work), asyncio.create_task(gone())
    try:
        both: list[asyncio.Future[Any]] = [task, left]
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return task.result()
    finally:
        task.cancel()
        left.cancel()
        await asyncio.gather(task, left, return_exceptions=True)


class PumpedResponse(Response):
    """An answer whose pieces are sent as they come, the next one when the client takes it.

    A client that goes away ends it at once, and so does one that stops reading, whose connection is
    cut (disagg_router.openai.connections). However it ends, even when nothing was sent, the pieces
    are closed, and `ended` is called once after that.
    """

    def __init__(
        self,
        status: int,
        headers: Iterable[tuple[bytes, bytes]],
        pieces: AsyncGenerator[bytes],
        ended: Callable[[], Awaitable[None]],
    ) -> None:
        super().__init__(status_code=status)
        self.raw_headers = list(headers)
        self._pieces = pieces
        self._ended = ended

    def finally_call(self, close: Callable[[], None]) -> None:
        """Call `close`, too, when the answer has ended, however it ends."""
        ended = self._ended

        async def both() -> None:
            try:
                await ended()
            finally:
                close()

        self._ended = both

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await while_connected(receive, self._pump(send))
        except ClientDisconnect:
            pass  # there is nobody to tell
        finally:
            await self._pieces.aclose()
            await self._ended()

    async def _pump(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for piece in self._pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
