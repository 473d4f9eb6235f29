"""A client that asks pods themselves, by their address, without a Prometheus.

It bounds the number of requests at once, their time and their bytes, and follows no redirect.
Addresses come from the status of pods that we own and must be literal IP addresses, so nothing can
direct a request elsewhere.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

_MAX_BYTES = 4 * 1024 * 1024
# What the pods of one namespace may answer in one sweep: so much, and so much more for each. A page
# of ours has some 30 KiB, one of an engine with eight replicas of itself some hundred.
_GROUP_BYTES, _TARGET_BYTES, _MOST_GROUP_BYTES = 8 << 20, 256 << 10, 64 << 20
# What all of them may: beyond that, no namespace keeps more than its part.
_ALL_BYTES = 128 << 20
# A router tells of some pairs for each of a thousand workers.
_MOST_PARTS = 200_000


@dataclass(frozen=True, slots=True)
class Target:
    """One URL to ask: a pod's name, address, port and path. `bearer` is not shown in logs."""

    pod: str
    address: str
    port: int
    path: str = "/metrics"
    bearer: str | None = field(default=None, repr=False)
    group: str = ""
    """The namespace, whose answers are bounded together."""

    def url(self) -> str:
        """Return the URL. Raises ValueError if the address is not an IP address."""
        ip = ipaddress.ip_address(self.address)
        host = f"[{ip}]" if ip.version == 6 else str(ip)
        return f"http://{host}:{self.port}{self.path}"


class _Kept:
    """The bytes of one sweep that are kept, by namespace."""

    def __init__(self, targets: Iterable[Target]) -> None:
        self._targets = Counter(target.group for target in targets)
        self._bytes: Counter[str] = Counter()
        self._all = 0

    def keeps(self, group: str, size: int) -> bool:
        """Return whether an answer is kept, and count it then."""
        most = min(_GROUP_BYTES + _TARGET_BYTES * self._targets[group], _MOST_GROUP_BYTES)
        if self._all + size > _ALL_BYTES:
            most = min(most, _ALL_BYTES // len(self._targets))
        if self._bytes[group] + size > most:
            return False
        self._bytes[group] += size
        self._all += size
        return True


class DirectDoor:
    """Fetches many targets at once. Targets that fail are absent from the result."""

    def __init__(self, *, timeout_s: float = 2.0, concurrency: int = 16, sweep_timeout_s: float = 10.0) -> None:
        self._timeout_s = timeout_s
        self._sweep_timeout_s = sweep_timeout_s
        self._gate = asyncio.Semaphore(concurrency)
        self._client = httpx.AsyncClient(
            timeout=timeout_s,
            follow_redirects=False,
            trust_env=False,
            limits=httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def fetch(self, targets: Iterable[Target]) -> Mapping[Target, str]:
        """Return the body of every target that answered 200 in time and within the bounds."""
        wanted = list(dict.fromkeys(targets))
        kept = _Kept(wanted)
        tasks = {asyncio.ensure_future(self._one(target, kept)): target for target in wanted}
        if not tasks:
            return {}
        done, late = await asyncio.wait(tasks, timeout=self._sweep_timeout_s)
        for task in late:
            task.cancel()
        if late:
            await asyncio.wait(late)
        return {tasks[t]: body for t in done if (body := t.result()) is not None}

    async def post(self, target: Target, content: Mapping[str, Any]) -> int | None:
        """Return the status of the answer, or None if there was none in time.

        The body is not read.
        """
        headers = {"Authorization": f"Bearer {target.bearer}"} if target.bearer else {}
        try:
            async with (
                self._gate,
                asyncio.timeout(self._timeout_s),
                self._client.stream("POST", target.url(), headers=headers, json=dict(content)) as response,
            ):
                return response.status_code
        except (httpx.HTTPError, TimeoutError, ValueError):
            return None

    async def _one(self, target: Target, kept: _Kept) -> str | None:
        headers = {"Authorization": f"Bearer {target.bearer}"} if target.bearer else {}
        try:
            async with (
                self._gate,
                asyncio.timeout(self._timeout_s),
                self._client.stream("GET", target.url(), headers=headers) as response,
            ):
                body = await _bounded(response) if response.status_code == 200 else None
                if body is None or not kept.keeps(target.group, len(body)):
                    return None
                return body.decode("utf-8", errors="replace")
        except (httpx.HTTPError, TimeoutError, ValueError):
            return None


async def _bounded(response: httpx.Response) -> bytearray | None:
    body = bytearray()
    async for chunk in response.aiter_bytes():
        body += chunk
        if len(body) > _MAX_BYTES:
            return None
    return body


def parse_json_object(text: str) -> dict[str, Any] | None:
    """Return the JSON object in a text, or None if it is not one or has absurdly many parts."""
    if text.count("{") + text.count("[") > _MOST_PARTS or text.count(",") > _MOST_PARTS:
        return None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
