"""A client of the token protocol, in the role of the router."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from disagg_wire.cluster_key import bearer_of

KEY = b"k" * 32
HEADERS = {"authorization": f"Bearer {bearer_of(KEY)}"}
Line = dict[str, Any]


@dataclass(frozen=True)
class Client:
    http: httpx.AsyncClient

    @asynccontextmanager
    async def call(self, role: str, body: Line) -> AsyncIterator[AsyncIterator[Line]]:
        """Yield the events of one call; leaving closes the connection, as a router does that wants
        no more.
        """
        async with self.http.stream("POST", f"/internal/v1/{role}", json=body) as answer:
            assert answer.status_code == 200, (await answer.aread()).decode()
            yield (json.loads(line) async for line in answer.aiter_lines())

    async def lines(self, role: str, body: Line) -> list[Line]:
        async with self.call(role, body) as events:
            return [line async for line in events]


def body(tokens: list[int], prompt_tokens: int | None = None, **sampling: Any) -> Line:
    return {
        "request_id": "r1",
        "epoch": 0,
        "tokens": tokens,
        "prompt_tokens": prompt_tokens or len(tokens),
        "sampling": {"seed": 1, "max_new_tokens": 8, "temperature": 0.0} | sampling,
        "deadline_s": 60.0,
    }


def tokens_of(lines: list[Line]) -> list[tuple[int, int]]:
    return [(line["index"], line["token"]) for line in lines if line["type"] == "token"]
