"""Turns requests into generations on threads, where long texts wait for each other alone."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from disagg_router.admission.quotas import Quota
from disagg_router.errors import ApiError
from disagg_router.openai.generation import Generation, plan
from disagg_router.openai.schema import ChatRequest, CompletionRequest
from disagg_router.text.tokenizer import Text
from disagg_router.workers.catalogue import Model

# A body of at most this many bytes is tokenized within some milliseconds.
LONG_BYTES = 32 << 10
_MAX_LONG = 64


class Planner:
    """Plans requests, the long ones one after the other."""

    def __init__(self, max_attempts: int, most_bytes: int) -> None:
        """`most_bytes` is the size of the long ones that wait together."""
        self._max_attempts = max_attempts
        self._most_bytes = most_bytes
        self._long = ThreadPoolExecutor(1, "long-prompts")
        self.waiting = self.waiting_bytes = 0

    async def plan(
        self,
        asked: ChatRequest | CompletionRequest,
        size_bytes: int,
        text: Text,
        model: Model,
        quota: Quota,
        tenant: str,
        arrived_s: float,
    ) -> list[Generation]:
        """Return every choice that a request asks for. Raises ApiError."""
        work = partial(plan, asked, text, model, self._max_attempts, quota, tenant, arrived_s)
        loop = asyncio.get_running_loop()
        if size_bytes <= LONG_BYTES:
            return await loop.run_in_executor(None, work)
        if self.waiting >= _MAX_LONG or (self.waiting and self.waiting_bytes + size_bytes > self._most_bytes):
            message = "too many long prompts are waiting to be read; try again"
            raise ApiError(503, message, code="overloaded", retry_after_s=1)
        self.waiting += 1
        self.waiting_bytes += size_bytes
        try:
            return await loop.run_in_executor(self._long, work)
        finally:
            self.waiting -= 1
            self.waiting_bytes -= size_bytes
