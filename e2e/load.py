"""A bounded load on one OpenAI endpoint.

It keeps a number of requests under way until it is told to stop, and records every failure.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx


@dataclass
class Result:
    """The outcome of a load."""

    finished: int = 0
    """The number of requests that ended with a whole answer."""
    failed: int = 0
    """The number of requests that failed."""
    errors: list[str] = field(default_factory=list)
    """The messages of the first 5 failures."""
    ttft_s: list[float] = field(default_factory=list)
    """The seconds from the start of each finished request to its first text."""
    waiting: int = 0
    """The number of requests under way that have had no text yet."""
    most_waiting: int = 0
    """The most of them that there have been at once."""

    @contextlib.contextmanager
    def until_text(self) -> Iterator[Callable[[], None]]:
        """Count a request as waiting; it yields what to call when the first text has come."""
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        left = [1]

        def came() -> None:
            self.waiting -= left[0]
            left[0] = 0

        try:
            yield came
        finally:
            came()

    def failure(self, message: str) -> None:
        self.failed += 1
        if len(self.errors) < 5:
            self.errors.append(message)


async def one(http: httpx.AsyncClient, url: str, body: dict[str, Any], result: Result) -> None:
    """Send one streamed completion; it counts as finished only with a finish_reason and [DONE]."""
    started_s, first_s, reason, done = time.monotonic(), 0.0, "", False
    try:
        async with contextlib.AsyncExitStack() as stack:
            came = stack.enter_context(result.until_text())
            answer = await stack.enter_async_context(
                http.stream("POST", f"{url}/v1/completions", json=body | {"stream": True})
            )
            if answer.status_code != 200:
                result.failure(f"HTTP {answer.status_code}: {(await answer.aread()).decode(errors='replace')[:200]}")
                return
            async for line in answer.aiter_lines():
                if line == "data: [DONE]":
                    done = True
                elif line.startswith("data: "):
                    chunk = json.loads(line[6:])
                    if "error" in chunk:
                        result.failure(str(chunk["error"]["message"]))
                        return
                    came()
                    first_s = first_s or time.monotonic()
                    reason = next((c["finish_reason"] for c in chunk["choices"] if c["finish_reason"]), reason)
    except httpx.HTTPError as error:
        result.failure(f"{type(error).__name__}: {error}")
        return
    if not (done and reason):
        result.failure("the stream ended without a finish_reason")
        return
    result.finished += 1
    result.ttft_s.append(first_s - started_s)


async def run(
    url: str,
    body: Callable[[int], dict[str, Any]],
    concurrency: int,
    until: Callable[[], Awaitable[bool]],
    limit_s: float,
    interval_s: float = 1.0,
    apart_s: float = 0.0,
) -> tuple[Result, bool]:
    """Keep `concurrency` requests under way until `until()` is true or `limit_s` has passed.

    The first ones begin `apart_s` apart. Requests that still run at the end may finish. `body(i)`
    returns the i-th request. The second value of the result tells whether `until()` became true.
    """
    result, stop, number = Result(), asyncio.Event(), iter(range(1_000_000))
    timeout = httpx.Timeout(120.0, connect=10.0)
    limits = httpx.Limits(max_connections=concurrency)

    async def client(http: httpx.AsyncClient, begins_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(begins_s):
                await stop.wait()
        while not stop.is_set():
            before = result.failed
            await one(http, url, body(next(number)), result)
            if result.failed > before:
                await asyncio.sleep(0.2)  # a dead server must not be hammered

    async with httpx.AsyncClient(timeout=timeout, limits=limits, trust_env=False) as http:
        clients = [asyncio.create_task(client(http, i * apart_s)) for i in range(concurrency)]
        deadline_s, reached = time.monotonic() + limit_s, False
        while not reached and time.monotonic() < deadline_s:
            reached = await until()
            if not reached:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(interval_s):
                        await stop.wait()
        stop.set()
        await asyncio.gather(*clients)
    return result, reached
