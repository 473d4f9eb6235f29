"""The connections to the API server, over which single requests are sent.

A call costs the operator little more than its TLS and its parsing: with thousands of objects, the
client is what most of the operator's time goes into.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlencode

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import BytesPayload
from yarl import URL

from disagg_operator.kube.credentials import Credentials
from disagg_operator.vocabulary import FIELD_MANAGER

_MOST = 16
_CONNECT_S = 5.0
# The most that an API server takes. The kernel may allow less.
_SEND_BUFFER_BYTES = 3 << 20


class Unanswered(Exception):
    """Raised when a connection can't be made, or breaks before the answer is complete."""


class NotSent(Exception):
    """Raised when a request was no longer allowed when it could have been sent."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer of the API server to a request."""

    status: int
    reason: str
    """The words that go with the status."""
    retry_after: str | None
    """What it says about when to try again."""
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode(errors="replace")


class _LastMoment(BytesPayload):
    """A body that is sent, and the head with it, only if that is still allowed at that moment.

    A request waits for its connection before it is sent, and the process may be stopped meanwhile.
    """

    def __init__(self, content: bytes, may_send: Callable[[], bool]) -> None:
        super().__init__(content)
        self._may_send = may_send

    async def write_with_length(self, writer: AbstractStreamWriter, content_length: int | None) -> None:
        if not self._may_send():
            raise NotSent("it was too late when the connection was there")
        await super().write_with_length(writer, content_length)


def _roomy(address: aiohttp.AddrInfoType) -> socket.socket:
    """Return a socket that takes a request at once.

    What the kernel has of a request, it sends. Of a larger one, a process that is stopped in the
    middle of it would send the rest when it goes on, when nobody asks any more whether it may.
    """
    family, kind, protocol, *_ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    return made


class Connections:
    """The connections of one client, at most 16 of them, for one event loop."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._server = credentials.server.rstrip("/")
        self._context = credentials.ssl_context()
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(
        self,
        verb: str,
        path: str,
        params: Mapping[str, str] | None = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        may_send: Callable[[], bool] = lambda: True,
    ) -> Reply:
        """Send a request and return the answer, whatever its status. Raises Unanswered.

        A request with a content raises NotSent, and nothing of it is sent, unless `may_send` holds
        in the very moment in which it would be.

        It waits for an answer without an end: the caller has a deadline.
        """
        query = f"?{urlencode(params)}" if params else ""
        # The path is made of checked names, and anything else would be quoted by its author.
        url = URL(f"{self._server}{path}{query}", encoded=True)
        sent = {**(headers or {}), **self._credentials.headers()}
        body = None if content is None else _LastMoment(content, may_send)
        try:
            async with self._open().request(verb, url, data=body, headers=sent, allow_redirects=False) as got:
                return Reply(got.status, got.reason or "", got.headers.get("Retry-After"), await got.read())
        except (aiohttp.ClientError, OSError) as error:
            if isinstance(error.__cause__, NotSent):
                raise error.__cause__ from None
            raise Unanswered(type(error).__name__) from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(ssl=self._context, limit=_MOST, socket_factory=_roomy),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": FIELD_MANAGER},
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                trust_env=False,  # credentials must not pass through a proxy that the environment happens to name
            )
        return self._session
