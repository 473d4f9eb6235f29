"""Tests of what bodies may cost: large ones cost those who send them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.token_worker import TokenWorker
from tests.router.stack import MODEL, Stack

from disagg_router.openai import app
from disagg_router.text.tokenizer import Text
from disagg_wire.request_bodies import BodyLimits, Refusal, RequestBodies

pytestmark = pytest.mark.slow
PLAIN: dict[str, Any] = {"model": MODEL, "prompt": "hello", "max_tokens": 2, "temperature": 0}


@contextlib.asynccontextmanager
async def unfinished(stack: Stack, length: int, sent: int) -> AsyncIterator[None]:
    """Have a request whose body of `length` bytes has come up to `sent` bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
    writer.write(f"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n".encode())
    writer.write(b"x" * sent)
    await writer.drain()
    try:
        yield
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        del reader


async def status(stack: Stack, size: int) -> tuple[int, str | None]:
    answer = await stack.http.post("/v1/completions", content=json.dumps(PLAIN | {"user": "u" * size}).encode())
    return answer.status_code, answer.headers.get("retry-after")


async def test_bodies_on_their_way_have_a_limit_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RequestBodies] = []

    def note(limits: BodyLimits, error_of: Callable[[Refusal, BodyLimits], Exception]) -> RequestBodies:
        made.append(RequestBodies(limits, error_of))
        return made[-1]

    monkeypatch.setattr(app, "RequestBodies", note)
    async with Stack(tmp_path, TokenWorker("d0", "decode"), max_bodies_bytes=100_000) as stack:
        [bodies] = made
        assert await status(stack, 900) == (200, None)
        async with unfinished(stack, 90_000, 60_000), unfinished(stack, 90_000, 38_000):
            await stack.until(lambda: bodies.held_bytes == 98_000)
            assert await status(stack, 0) == (200, None)
            answer = await stack.http.post("/v1/completions", content=b"x" * 5000)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            assert answer.json()["error"]["code"] == "overloaded"
        await stack.until(lambda: bodies.held_bytes == 0)
        answer = await stack.http.post("/v1/completions", content=b"x" * 5000)
        assert answer.status_code == 400


async def test_what_is_announced_as_too_long_is_refused_before_it_comes(tmp_path: Path) -> None:
    async with Stack(tmp_path, max_body_bytes=2000) as stack:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(stack.url.rpartition(":")[2]))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2001\r\n\r\n")
        async with asyncio.timeout(20):
            assert b" 413 " in await reader.readline()
        writer.close()


async def test_a_long_text_holds_up_no_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many long ones as there are threads, and then some."""
    loop, began, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    encode = Text.encode

    def slow(text: Text, content: str, **options: Any) -> list[int]:
        if len(content) > 30_000:
            loop.call_soon_threadsafe(began.set)
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(60)
        return encode(text, content, **options)

    monkeypatch.setattr(Text, "encode", slow)
    async with Stack(tmp_path, TokenWorker("d0", "decode")) as stack:
        long = [asyncio.create_task(stack.complete("a" * 40_000)) for _ in range(70)]
        await began.wait()
        assert (await stack.complete("hello")).status_code == 200
        go_on.set()
        answers = await asyncio.gather(*long)
        found = {a.status_code for a in answers}
        assert found == {400, 503}
        assert all(a.headers["retry-after"] == "1" for a in answers if a.status_code == 503)
        # Whoever went on got the answer that is due to a prompt that is too long.
        assert {a.json()["error"]["code"] for a in answers if a.status_code == 400} == {"context_length_exceeded"}


async def test_long_texts_that_wait_are_bounded_in_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop, began, go_on = asyncio.get_running_loop(), asyncio.Event(), asyncio.Event()
    encode = Text.encode

    def slow(text: Text, content: str, **options: Any) -> list[int]:
        loop.call_soon_threadsafe(began.set)
        asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(60)
        return encode(text, content, **options)

    async with Stack(tmp_path, TokenWorker("d0", "decode"), max_bodies_bytes=100_000) as stack:
        monkeypatch.setattr(Text, "encode", slow)
        first = asyncio.create_task(stack.complete("a" * 60_000))
        await began.wait()
        answer = await stack.complete("a" * 60_000)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "overloaded")
        go_on.set()
        assert (await first).json()["error"]["code"] == "context_length_exceeded"
        assert (await stack.complete("a" * 60_000)).json()["error"]["code"] == "context_length_exceeded"
