"""Sends spans to a collector by OTLP over HTTP, beside the requests.

A collector that is slow, dead or refuses what it gets costs spans, and nothing else: the queue and
every wait are bounded.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from disagg_router.guarded_socket import socket_factory
from disagg_router.tracing.span_queue import SpanMessage, SpanQueue

log = logging.getLogger(__name__)
TRACES_PATH = "/v1/traces"
# Together far below what collectors accept, 4 MiB and more.
_BATCH_SPANS, _BATCH_BYTES = 512, 512 << 10
# After so many tries a message is given up, so that a collector's restart loses little.
_TRIES = 4
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 30.0
# The statuses after which the specification of OTLP asks for another try.
_TRY_AGAIN = (429, 502, 503, 504)
_MOST_ANSWER_BYTES = 64 << 10
_MOST_HEADERS_BYTES = 64 << 10
_LOG_EVERY_S = 60.0


class ExportFailed(Exception):
    """Raised when a message was not taken; `again` says whether another try may help."""

    def __init__(self, message: str, *, again: bool, pause_s: float | None = None) -> None:
        super().__init__(message)
        self.again = again
        self.pause_s = pause_s


@dataclass(frozen=True)
class Collector:
    """Where spans go. The files are read again when they change."""

    endpoint: str
    timeout_s: float = 5.0
    interval_s: float = 1.0
    """How long spans are gathered."""
    headers_file: Path | None = None
    """Lines of the form `Name: value`."""
    ca_file: Path | None = None

    @property
    def url(self) -> str:
        """The address of traces."""
        base = self.endpoint.rstrip("/")
        return base if base.endswith(TRACES_PATH) else base + TRACES_PATH


@dataclass(frozen=True)
class Counts:
    """What is told of spans, by their number."""

    exported: Callable[[int], None]
    dropped: Callable[[str, int], None]
    """With one of DROPS."""


# The reasons for which spans are dropped.
QUEUE_FULL, FAILED, REJECTED, ENDED = "queue_full", "failed", "rejected", "ended"
DROPS = (QUEUE_FULL, FAILED, REJECTED, ENDED)


def headers_in(text: str) -> dict[str, str]:
    """Return the headers of a file: each line has a name and a value. Raises ValueError."""
    found: dict[str, str] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        name, colon, value = line.partition(":")
        if not colon or not name.strip() or not name.strip().isascii() or not value.strip().isprintable():
            raise ValueError("a line is not of the form `Name: value`")
        found[name.strip()] = value.strip()
    return found


class Exporter:
    """The exporter of a router.

    `rejected` reads from an answer how many spans the collector has refused.
    """

    def __init__(
        self, collector: Collector, queue: SpanQueue, counts: Counts, rejected: Callable[[bytes], int]
    ) -> None:
        self._collector = collector
        self._queue = queue
        self._counts = counts
        self._rejected = rejected
        self._http: aiohttp.ClientSession | None = None  # created within a running loop
        self._stamps: tuple[float, ...] = ()
        self._headers: Mapping[str, str] = {}
        self._tls: ssl.SSLContext | bool = True
        self._logged_s = -_LOG_EVERY_S
        self._sending: SpanMessage | None = None

    def has_room(self, spans: int) -> bool:
        """Return whether so many spans would be taken now; if not, they count as dropped."""
        if self._queue.has_room(spans):
            return True
        self._counts.dropped(QUEUE_FULL, spans)
        return False

    def add(self, content: bytes, spans: int) -> None:
        """Queue a message, or drop it."""
        if not self._queue.add(SpanMessage(content, spans)):
            self._counts.dropped(QUEUE_FULL, spans)

    async def run(self) -> None:
        """Send what comes until cancelled."""
        while True:
            await asyncio.sleep(self._collector.interval_s)
            while self._queue.waiting:
                await self._send_next(_TRIES)

    async def close(self, timeout_s: float) -> None:
        """Send what is left, for so long at most, and close the connections."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                if self._sending is not None:
                    await self._send(self._sending, 1)
                while self._queue.waiting:
                    await self._send_next(1)
        left = self._queue.spans
        if left:
            self._counts.dropped(ENDED, left)
        if self._http is not None:
            await self._http.close()

    async def _send_next(self, tries: int) -> None:
        message = self._queue.take(_BATCH_SPANS, _BATCH_BYTES)
        if message is not None:
            self._sending = message
            await self._send(message, tries)

    async def _send(self, message: SpanMessage, tries: int) -> None:
        """Send a message, or drop it after so many tries."""
        pause_s = _FIRST_PAUSE_S
        for left in range(tries - 1, -1, -1):
            try:
                refused = min(message.spans, await self._post(message.content))
            except ExportFailed as failure:
                self._say(failure)
                if not left or not failure.again:
                    self._counts.dropped(FAILED if failure.again else REJECTED, message.spans)
                    break
                await asyncio.sleep(min(_LONGEST_PAUSE_S, max(pause_s, failure.pause_s or 0.0)))
                pause_s *= 2
            else:
                self._counts.exported(message.spans - refused)
                if refused:
                    self._counts.dropped(REJECTED, refused)
                break
        self._sending = None
        self._queue.done(message)

    def _say(self, failure: ExportFailed) -> None:
        """Log a failure, once a minute at most."""
        now_s = time.monotonic()
        if now_s - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now_s
            log.warning("spans do not reach %s: %s", self._collector.url, failure)

    async def _post(self, content: bytes) -> int:
        """Return how many spans the collector has refused. Raises ExportFailed."""
        try:
            async with asyncio.timeout(self._collector.timeout_s):
                http = await self._session()
                async with http.post(
                    self._collector.url, data=content, headers=self._headers, allow_redirects=False
                ) as answer:
                    told = b""
                    while piece := await answer.content.read(_MOST_ANSWER_BYTES - len(told)):
                        told += piece
                    if answer.status in _TRY_AGAIN:
                        raise ExportFailed(f"HTTP {answer.status}", again=True, pause_s=_pause_s(answer.headers))
                    if not 200 <= answer.status < 300:
                        raise ExportFailed(f"HTTP {answer.status}", again=False)
                    return self._rejected(told)
        except TimeoutError:
            raise ExportFailed("no answer in time", again=True) from None
        except ExportFailed:
            raise
        except (aiohttp.ClientError, OSError) as error:
            raise ExportFailed(type(error).__name__, again=True) from None
        except ValueError as error:  # also of a file that cannot be used, and without its content
            raise ExportFailed(str(error), again=False) from None
        except Exception as error:  # spans must not end the router
            log.exception("spans could not be sent")
            raise ExportFailed(type(error).__name__, again=False) from None

    async def _session(self) -> aiohttp.ClientSession:
        """Return the client, made anew when a file has changed. Raises OSError or ValueError."""
        files = self._collector.headers_file, self._collector.ca_file
        stamps = tuple(0.0 if file is None else file.stat().st_mtime for file in files)
        if self._http is not None and stamps == self._stamps:
            return self._http
        if self._http is not None:
            await self._http.close()
            self._http = None
        self._read(*files)
        self._stamps = stamps
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=1, ssl=self._tls, socket_factory=socket_factory(self._collector.endpoint)
            ),
            headers={"content-type": "application/x-protobuf", "user-agent": "disagg-router"},
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None),
            trust_env=False,
        )
        return self._http

    def _read(self, headers_file: Path | None, ca_file: Path | None) -> None:
        if headers_file is not None:
            try:
                with headers_file.open("rb") as file:
                    self._headers = headers_in(file.read(_MOST_HEADERS_BYTES).decode())
            except UnicodeDecodeError:  # which quotes what it has read
                raise ValueError("the file of headers is no UTF-8") from None
        if ca_file is not None:
            try:
                self._tls = ssl.create_default_context(cafile=str(ca_file))
            except ssl.SSLError:
                raise ValueError("the file of authorities has no PEM certificates") from None


def _pause_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that an answer asks to wait; a date is not understood."""
    text = headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdigit() and len(text) < 6 else None
