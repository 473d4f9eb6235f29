"""Tests that a router that ends takes nothing new, keeps no connection and cuts no stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from tests.fakes.token_worker import TokenWorker, expected_text
from tests.router.stack import MODEL, Stack, tokens_of

from disagg_router.main import drain

BODY = {"model": MODEL, "prompt": "hello", "max_tokens": 9, "seed": 5}


@asynccontextmanager
async def one_connection(stack: Stack) -> AsyncIterator[httpx.AsyncClient]:
    """Yield a client that keeps its connection as long as it may."""
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1)
    async with httpx.AsyncClient(base_url=stack.url, limits=limits, trust_env=False, timeout=60) as http:
        yield http


def connections(stack: Stack) -> int:
    return len(stack._server.server_state.connections)


async def test_clients_that_keep_their_connections_do_not_keep_the_router_and_no_stream_is_cut(tmp_path: Path) -> None:
    prefill, decode = TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")
    async with Stack(tmp_path, prefill, decode) as stack, one_connection(stack) as idle, one_connection(stack) as busy:
        assert (await idle.post("/v1/completions", json=BODY)).status_code == 200
        decode.hold.clear()
        async with busy.stream("POST", "/v1/completions", json=BODY | {"stream": True}) as answer:
            lines = answer.aiter_lines()
            text = json.loads((await anext(lines)).removeprefix("data: "))["choices"][0]["text"]
            before = connections(stack)
            stack.router.end()
            ending = asyncio.create_task(drain(stack.router, stack._server, 0.0))
            await stack.until(lambda: connections(stack) < before)  # the idle one is closed
            # What comes now is refused, on a connection that ends with it.
            late = await idle.post("/v1/completions", json=BODY)
            assert (late.status_code, late.json()["error"]["code"]) == (503, "draining")
            assert (late.headers["connection"], late.headers["retry-after"]) == ("close", "1")
            assert (await idle.get("/readyz")).status_code == 503
            assert not ending.done()
            decode.hold.set()
            events = [line.removeprefix("data: ") async for line in lines if line]
        text += "".join(json.loads(e)["choices"][0]["text"] for e in events[:-1])
        assert (text, events[-1]) == (expected_text(5, tokens_of("hello"), 9), "[DONE]")
        await ending
        assert stack._server.should_exit


async def test_while_clients_have_not_noticed_they_are_served_and_their_connections_end(tmp_path: Path) -> None:
    workers = TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")
    async with Stack(tmp_path, *workers) as stack, one_connection(stack) as http:
        answer = await http.post("/v1/completions", json=BODY)
        assert "connection" not in answer.headers
        stack.router.end()
        answer = await http.post("/v1/completions", json=BODY)
        assert (answer.status_code, answer.headers["connection"]) == (200, "close")


# (what a client gives, whether that is the name)
NAMES = [("my-id.1", True), ("a" * 128, True), ("a" * 129, False), ("", False), ("a b", False), ("a\xe9", False)]


async def test_every_answer_has_the_name_of_its_request(tmp_path: Path) -> None:
    calls = [
        ("GET", "/v1/models", None), ("GET", "/none", None), ("PUT", "/v1/models", None), ("GET", "/metrics", None),
        ("POST", "/v1/completions", BODY), ("POST", "/v1/completions", BODY | {"stream": True}),
        ("POST", "/v1/completions", {}),
    ]  # fmt: skip
    async with Stack(tmp_path, TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")) as stack:
        for given, kept in NAMES:
            headers = {b"x-request-id": given.encode("latin-1")}
            answers = [await stack.http.request(m, path, json=body, headers=headers) for m, path, body in calls]
            names = [answer.headers["x-request-id"] for answer in answers]
            assert (set(names) == {given}) == kept
            assert kept or (len(set(names)) == len(names) and all(len(name) == 24 for name in names))


async def test_the_log_tells_the_name_that_the_client_gave(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    async with Stack(tmp_path, TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")) as stack:
        await stack.http.post("/v1/completions", json=BODY, headers={"x-request-id": "mine-7"})
        await stack.until(lambda: stack.router.active == 0)
    assert " id=mine-7" in caplog.text
