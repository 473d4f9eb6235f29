"""A client that reads what engines and Prometheus servers answer, with bounds on time and bytes.

It follows no redirect, because the token would go elsewhere, and takes no proxy from the
environment.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from disagg_operator.planning.assessment.readings import AssessError

MOST_BYTES = 16 * 1024 * 1024
TIMEOUT_S = 10.0
# A query may read all series of a month.
QUERY_S = 60.0
_AT_ONCE = 16


class BoundedHttp:
    """Reads URLs, used by `async with`."""

    def __init__(self, token: str | None = None, authorities: Path | None = None) -> None:
        """Trust the certificate authorities of a PEM file instead of the public ones.

        Raises OSError if it cannot be read.
        """
        trust = ssl.create_default_context(cafile=authorities) if authorities else True
        self._gate = asyncio.Semaphore(_AT_ONCE)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        self._client = httpx.AsyncClient(
            headers=headers, timeout=QUERY_S, trust_env=False, follow_redirects=False, verify=trust
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, url: str, form: Mapping[str, str] | None = None) -> tuple[int, str]:
        """Return the status and the text of an answer. With `form`, post it. Raises AssessError."""
        timeout_s = TIMEOUT_S if form is None else QUERY_S
        try:
            async with self._gate, asyncio.timeout(timeout_s):
                return await self._answer(url, form)
        except TimeoutError:
            raise AssessError(f"{url}: no answer within {timeout_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise AssessError(f"{url}: {error or type(error).__name__}") from None

    async def _answer(self, url: str, form: Mapping[str, str] | None) -> tuple[int, str]:
        method = "GET" if form is None else "POST"
        body = bytearray()
        async with self._client.stream(method, url, data=form) as response:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise AssessError(f"{url}: the answer is over {MOST_BYTES >> 20} MiB")
            return response.status_code, body.decode("utf-8", errors="replace")
