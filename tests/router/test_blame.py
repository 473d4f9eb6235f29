"""Tests of the blame for a transfer that breaks off: decode sees it first, but prefill knows
why.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from tests.fakes.token_worker import TokenWorker, expected_text
from tests.router.stack import Stack, tokens_of


class Failing(TokenWorker):
    """A worker whose computation fails while decode waits for the KV.

    Decode learns of it before the router does.
    """

    fails = False
    code = "internal"
    retryable = True

    async def _prefill_lines(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
        if self.fails:
            await self._tell(body["ticket"], -1)
            await asyncio.sleep(0.05)
            yield {"type": "error", "code": self.code, "message": "as told", "retryable": self.retryable}
            return
        async for line in super()._prefill_lines(body):
            yield line


async def test_the_worker_that_failed_is_avoided_and_not_its_link_to_one_other(tmp_path: Path) -> None:
    prefill = Failing("p0", "prefill")
    async with Stack(tmp_path, prefill, TokenWorker("d0", "decode"), TokenWorker("d1", "decode")) as stack:
        stack.router.table.breaker.first_s = 30.0
        prefill.fails = True
        answer = (await stack.complete()).json()
        assert answer["choices"][0]["text"] == expected_text(5, tokens_of("hello"), 8)
        assert (answer["disagg"]["path"], answer["disagg"]["attempts"]) == ("local", 2)
        assert await stack.metric('disagg_router_failovers_total{reason="internal"}') == 1
        assert stack.router.table.breaker.is_open(prefill.incarnation, time.monotonic())


async def test_nobody_is_avoided_because_of_a_request_that_fails_alone(tmp_path: Path) -> None:
    prefill = Failing("p0", "prefill")
    async with Stack(tmp_path, prefill, TokenWorker("d0", "decode")) as stack:
        stack.router.table.breaker.first_s = 30.0
        prefill.fails, prefill.code = True, "request_failed"
        answer = await stack.complete()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert await stack.metric('disagg_router_failovers_total{reason="request_failed"}') == 4
        prefill.fails = False
        assert (await stack.complete()).json()["disagg"]["path"] == "remote"


async def test_requests_that_fail_alone_take_no_retries_of_others(tmp_path: Path) -> None:
    prefill = Failing("p0", "prefill")
    async with Stack(tmp_path, prefill, TokenWorker("d0", "decode")) as stack:
        stack.router.table.breaker.first_s = 30.0
        prefill.fails, prefill.code = True, "request_failed"
        for _ in range(4):
            await stack.complete()
        assert await stack.metric("disagg_router_retry_budget") == 10.0
        prefill.code = "transfer_failed"
        stack.router.table.breaker.first_s = 0.0
        await stack.complete()
        assert await stack.metric("disagg_router_retry_budget") < 10.0


async def test_what_fails_everywhere_is_tried_nowhere_else_and_nobody_is_avoided_for_it(tmp_path: Path) -> None:
    prefill = Failing("p0", "prefill")
    async with Stack(tmp_path, prefill, TokenWorker("d0", "decode")) as stack:
        stack.router.table.breaker.first_s = 30.0
        prefill.fails, prefill.retryable = True, False
        answer = await stack.complete()
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert len([b for b in prefill.seen.bodies if b["tokens"] == tokens_of("hello")]) == 1
        prefill.fails = False
        assert (await stack.complete()).json()["disagg"]["path"] == "remote"
