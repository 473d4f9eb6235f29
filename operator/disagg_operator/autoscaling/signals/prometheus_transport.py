"""Carries out the requests of prometheus-api-client, which is synchronous, on the event loop.

There one deadline covers all of a request. URLs come from users, so no more is done for a server
than necessary: no redirect is followed (the credentials would go to another host), no proxy,
password or authority is taken from the environment, a bounded number of bytes is read, and
link-local addresses are refused, because clouds serve the credentials of the machine there.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import aiohttp
import certifi
from aiohttp.abc import ResolveResult
from requests import PreparedRequest, Response
from requests.adapters import BaseAdapter
from requests.structures import CaseInsensitiveDict
from yarl import URL

from disagg_operator.autoscaling.signals.prometheus_access import (
    CREDENTIALS_UNAVAILABLE,
    PATH,
    PrometheusEndpoint,
    Unreadable,
)
from disagg_wire.refused_addresses import refused_address, refused_host

MAX_BYTES = 16 * 1024 * 1024
# An answer that is larger than this is read and parsed alone, whoever has sent it: parsed, it takes
# up to ten times its size.
LARGE_BYTES = 1024 * 1024
# More lists, maps and items than the largest honest answer has. An empty map has two bytes and
# takes 64 when it is parsed.
_MOST_CONTAINERS, _MOST_ITEMS = 600_000, 1_500_000
_MOST_CONTEXTS = 64


class _Resolver(aiohttp.ThreadedResolver):
    """Resolves host names, and raises Unreadable for refused addresses.

    A request connects only to the addresses that were checked here.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await super().resolve(host, port, family)
        if any(refused_address(one["host"]) for one in found):
            raise Unreadable(f"{PATH}.url: leads to a link-local address, where no Prometheus can be")
        return found


@dataclass(slots=True)
class Lease:
    """Whether a caller holds the right to a large answer, which `Transport.release` gives back."""

    held: bool = False
    over: bool = False
    """Whether the caller has gone, so that nothing may be held any more."""


class Transport:
    """One HTTP client for all endpoints.

    It must be created, used and closed on the same event loop.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._contexts: OrderedDict[str | None, ssl.SSLContext] = OrderedDict()
        self._client: aiohttp.ClientSession | None = None
        self._one_large = asyncio.Lock()

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    async def get(self, endpoint: PrometheusEndpoint, url: str, headers: Mapping[str, str], lease: Lease) -> bytes:
        """Return the body of a successful answer. Raises Unreadable for any other."""
        target = URL(url, encoded=True)
        if not target.host or refused_host(target.host):
            raise Unreadable(f"{PATH}.url: is a link-local address, where no Prometheus can be")
        client, context = self._session(), self._context(endpoint.ca_pem)
        try:
            sent = {**headers, **dict(endpoint.headers)}
            async with client.get(target, headers=sent, ssl=context, allow_redirects=False) as response:
                if response.status != 200:
                    raise _refusal(response.status, endpoint)
                return await self._bounded(response, lease)
        except aiohttp.ClientConnectorCertificateError as error:
            why = f"the Prometheus server is not trusted: {_why(error.certificate_error)}; see {PATH}.tlsConfig.ca"
            raise Unreadable(why, refused=True) from None
        except aiohttp.ClientSSLError as error:
            raise Unreadable(
                f"no TLS with the Prometheus server: {_why(error.os_error)}; see {PATH}.url", refused=True
            ) from None
        except (aiohttp.ClientError, TimeoutError, ValueError, OSError):
            raise Unreadable("the Prometheus server does not answer") from None

    async def _bounded(self, response: aiohttp.ClientResponse, lease: Lease) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_any():
            body += chunk
            if len(body) > MAX_BYTES:
                raise Unreadable(f"the Prometheus server answers with more than {MAX_BYTES >> 20} MiB")
            if len(body) > LARGE_BYTES and not lease.held:
                await self._one_large.acquire()
                lease.held = True
                if lease.over:
                    self.release(lease)
                    raise Unreadable("the Prometheus server does not answer")
        if body.count(b"{") + body.count(b"[") > _MOST_CONTAINERS or body.count(b",") > _MOST_ITEMS:
            raise Unreadable("the Prometheus server answers with more values than pods have")
        if lease.over:
            self.release(lease)
        return bytes(body)

    def release(self, lease: Lease) -> None:
        """Let the next large answer be read; the caller of `get` has parsed its own."""
        lease.over = True
        if lease.held:
            lease.held = False
            self._one_large.release()

    def _session(self) -> aiohttp.ClientSession:
        if self._client is None:
            connector = aiohttp.TCPConnector(resolver=_Resolver(), limit=32, ttl_dns_cache=10)
            timeout = aiohttp.ClientTimeout(total=self._timeout_s)
            self._client = aiohttp.ClientSession(
                connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trust_env=False, timeout=timeout
            )
        return self._client

    def _context(self, ca_pem: str | None) -> ssl.SSLContext:
        found = self._contexts.get(ca_pem)
        if found is None:
            found = self._contexts[ca_pem] = _new_context(ca_pem)
            if len(self._contexts) > _MOST_CONTEXTS:
                self._contexts.popitem(last=False)
        self._contexts.move_to_end(ca_pem)
        return found


class Adapter(BaseAdapter):
    """The adapter through which `requests` sends to one endpoint of a `Transport`.

    It is called from another thread than that of the event loop.
    """

    def __init__(
        self,
        transport: Transport,
        endpoint: PrometheusEndpoint,
        loop: asyncio.AbstractEventLoop,
        timeout_s: float,
        lease: Lease,
    ) -> None:
        super().__init__()
        self._transport = transport
        self._endpoint = endpoint
        self._loop = loop
        self._timeout_s = timeout_s
        self._lease = lease

    def send(self, request: PreparedRequest, *_: object, **__: object) -> Response:
        """Send a request and return its response. Raises Unreadable."""
        headers = {"Accept": "application/json", "Accept-Encoding": "gzip, deflate", "User-Agent": "disagg-operator"}
        call = self._transport.get(self._endpoint, str(request.url), headers, self._lease)
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            body = future.result(self._timeout_s)
        except TimeoutError:
            future.cancel()
            raise Unreadable("the Prometheus server does not answer") from None
        response = Response()
        response.status_code, response.request, response.url = 200, request, str(request.url)
        response._content = body
        response.headers = CaseInsensitiveDict()  # empty: no redirect is followed and no cookie kept
        return response

    def close(self) -> None:
        """Do nothing, because the transport outlives the adapter."""


def _refusal(status: int, endpoint: PrometheusEndpoint) -> Unreadable:
    """Return the error for an HTTP status.

    It never includes the body: users must not read what an address answers that they made the
    operator ask.
    """
    if status in (401, 403):
        words = f"the Prometheus server refuses the credentials (HTTP {status})"
        return Unreadable(f"{words}; see {endpoint.credentials_field} and {PATH}.headers", refused=True)
    if 300 <= status < 400:
        return Unreadable(f"the Prometheus server redirects (HTTP {status}), which is not followed; see {PATH}.url")
    return Unreadable(f"the Prometheus server answers HTTP {status}")


def _new_context(ca_pem: str | None) -> ssl.SSLContext:
    if ca_pem is None:
        return ssl.create_default_context(cafile=certifi.where())
    try:
        context = ssl.create_default_context(cadata=ca_pem)
    except (ssl.SSLError, ValueError):
        raise Unreadable(f"{PATH}.tlsConfig.ca: the PEM certificates can't be read", CREDENTIALS_UNAVAILABLE) from None
    # A certificate that is given here is trusted itself, and needs none of the extensions that its
    # issuer may have left out.
    context.verify_flags = (context.verify_flags | ssl.VERIFY_X509_PARTIAL_CHAIN) & ~ssl.VERIFY_X509_STRICT
    return context


def _why(error: BaseException) -> str:
    """Return OpenSSL's own words for a problem with a certificate or a handshake.

    Apart from names they hold nothing that the server sent.
    """
    message = getattr(error, "verify_message", None) or getattr(error, "reason", None) or type(error).__name__
    return str(message)[:200]
