"""A service beside this deployment, to which a share of the requests goes while it is replaced."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import aiohttp

from disagg_router.errors import ApiError
from disagg_router.guarded_socket import RefusedAddress, socket_factory
from disagg_router.settings import Settings

# Such a request is answered by the pools, so that a service that leads back here ends no router.
MARK = "x-disagg-upstream"
_CONNECT_S = 5.0
# uvicorn, which serves both engines, closes a connection after 5 s without requests.
_KEPT_S = 3.0
# What a client says to the service. It also gets the key of the client, as it did before.
_PASSED_ON = ("accept", "authorization", "content-type", "traceparent", "tracestate", "user-agent", "x-request-id")
# Pieces are passed on as they are, to a client that may not know their encoding.
_OF_OURS = {MARK: "1", "accept-encoding": "identity"}
_PIECE_BYTES = 64 << 10


class Upstream:
    """A client of that service.

    It connects to no link-local address, unless the URL itself has one.

    Its answers are passed on as they are. The number of its requests, and every wait for the next
    piece of an answer, are bounded.
    """

    def __init__(self, url: str, percent: float, settings: Settings, chance: Callable[[], float]) -> None:
        self._url = url.rstrip("/").removesuffix("/v1")
        self._percent = percent
        self._settings = settings
        self._chance = chance
        self._running = 0
        self._http: aiohttp.ClientSession | None = None  # created within a running loop

    def takes(self, headers: Mapping[str, str]) -> bool:
        """Decide whether a request goes there."""
        return MARK not in headers and 100 * self._chance() < self._percent

    async def close(self) -> None:
        if self._http is not None:
            await self._http.close()

    @asynccontextmanager
    async def ask(
        self, path: str, body: bytes, headers: Mapping[str, str], *, streamed: bool
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Yield the answer to a request. Leaving the context ends the request there.

        Raises ApiError.
        """
        if self._running >= self._settings.upstream_max_running:
            raise ApiError(429, "too many requests run in the upstream", code="upstream_busy", retry_after_s=1)
        wait_s = self._settings.first_token_timeout_s if streamed else self._settings.request_timeout_s
        sent = {name: headers[name] for name in _PASSED_ON if name in headers} | _OF_OURS
        self._running += 1
        try:
            async with asyncio.timeout(wait_s):
                try:
                    answer = await self._post(path, body, sent)
                except aiohttp.ClientConnectorError:
                    raise
                except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
                    # It closed a connection that was kept open, as servers do after some seconds.
                    answer = await self._post(path, body, sent)
            async with answer:
                if 300 <= answer.status < 400:
                    raise ApiError(502, "the upstream redirects, which is not followed", code="upstream_failed")
                yield answer
        except TimeoutError:
            raise ApiError(504, "the upstream did not answer in time", code="upstream_timeout") from None
        except (aiohttp.ClientError, OSError) as error:
            refused = isinstance(error, aiohttp.ClientConnectorError) and isinstance(error.os_error, RefusedAddress)
            why = "its name leads to a link-local address" if refused else type(error).__name__
            raise ApiError(502, f"the upstream failed: {why}", code="upstream_failed") from None
        finally:
            self._running -= 1

    async def pieces(self, answer: aiohttp.ClientResponse, deadline_s: float) -> AsyncGenerator[bytes]:
        """Yield the pieces of an answer as they come. Raises ApiError.

        `deadline_s` is the time of the loop at which the whole answer must be there.
        """
        first = True
        try:
            while True:
                limit_s = self._settings.first_token_timeout_s if first else self._settings.stall_timeout_s
                until_s = min(asyncio.get_running_loop().time() + limit_s, deadline_s)
                async with asyncio.timeout_at(until_s):
                    piece = await answer.content.read(_PIECE_BYTES)
                if not piece:
                    return
                first = False
                yield piece
        except TimeoutError:
            raise ApiError(504, "the upstream did not go on in time", code="upstream_timeout") from None
        except (aiohttp.ClientError, OSError) as error:
            raise ApiError(502, f"the upstream broke off: {type(error).__name__}", code="upstream_failed") from None

    async def _post(self, path: str, body: bytes, headers: Mapping[str, str]) -> aiohttp.ClientResponse:
        url = f"{self._url}{path}"
        return await self._session().post(url, data=body, headers=headers, allow_redirects=False)

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None:
            self._http = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    keepalive_timeout=_KEPT_S,
                    # The operator admits such a URL only if the policy of the namespace names it.
                    socket_factory=socket_factory(self._url),
                ),
                # One client's cookies would go there with the requests of all others.
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
                auto_decompress=False,
                trust_env=False,
            )
        return self._http


def upstream_of(settings: Settings, chance: Callable[[], float] = random.random) -> Upstream | None:
    """Return the client of the service that the settings name, or None."""
    if settings.upstream_url is None:
        return None
    return Upstream(settings.upstream_url, settings.upstream_percent, settings, chance)
