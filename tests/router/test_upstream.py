"""Tests of requests that go to a service beside the deployment, over real sockets.

The service is another router with workers of its own, or a scripted server where it fails.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
from aiohttp import web
from tests.connections import serving
from tests.router.stack import MODEL, Stack, pair

from disagg_router.dispatch.upstream import MARK, upstream_of
from disagg_router.guarded_socket import guarded_socket

ASKED = {"model": MODEL, "prompt": "one two three", "max_tokens": 5, "temperature": 0, "seed": 7}
STREAMED = {**ASKED, "stream": True}


@asynccontextmanager
async def split(folder: Path, url: str, percent: float = 100.0, **options: Any) -> AsyncIterator[Stack]:
    """Run a router with a pair of workers beside a service."""
    values = {"upstream_url": url, "upstream_percent": percent, "objective_ttft_s": 10, "objective_tpot_s": 5}
    (folder / "split").mkdir()
    async with Stack(folder / "split", *pair(), **(values | options)) as found:
        yield found


@asynccontextmanager
async def scripted(answer: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> AsyncIterator[str]:
    """Serve one answer to all requests; yields the URL."""
    anything = web.route("*", "/{tail:.*}", answer)
    async with serving(anything, handler_cancellation=True, shutdown_timeout=0.1) as port:
        yield f"http://127.0.0.1:{port}"


def counted(backend: str, within: bool) -> str:
    word = "true" if within else "false"
    return f'disagg_router_split_requests_total{{backend="{backend}",within="{word}"}}'


async def lines(stack: Stack, body: dict[str, Any]) -> list[Any]:
    async with stack.http.stream("POST", "/v1/completions", json=body) as answer:
        found = [line.removeprefix("data: ") async for line in answer.aiter_lines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in found]


async def test_answers_are_those_of_the_service_and_both_sides_are_compared(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as existing, split(tmp_path, f"{existing.url}/v1") as stack:
        whole = (await stack.http.post("/v1/completions", json=ASKED)).json()
        direct = (await existing.http.post("/v1/completions", json=ASKED)).json()
        assert whole["choices"] == direct["choices"]
        assert await stack.metric(counted("upstream", True)) == 0  # only streams are compared
        stream = await lines(stack, STREAMED)
        assert stream[-1] == "[DONE]"
        assert "".join(c["choices"][0]["text"] for c in stream[:-1]) == whole["choices"][0]["text"]
        assert await stack.metric(counted("upstream", True)) == 1
        assert await stack.metric('disagg_router_split_ttft_seconds_count{backend="upstream"}') == 1
        assert await stack.metric('disagg_router_split_tpot_seconds_count{backend="upstream"}') == 1
        assert await existing.metric("disagg_router_arrivals_total") == 3
        assert await stack.metric("disagg_router_arrivals_total") == 0
        assert stack.router.active == 0
        # The mark of a service that leads back.
        back = await stack.http.post("/v1/completions", json=STREAMED, headers={MARK: "1"})
        assert back.status_code == 200
        assert await stack.metric("disagg_router_arrivals_total") == 1
        assert await stack.metric(counted("pools", True)) == 1


async def test_a_percentage_goes_there(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair()) as existing, split(tmp_path, existing.url, 25) as stack:
        chances = itertools.cycle([0.0, 0.249, 0.25, 0.999])
        stack.router.upstream = upstream_of(stack.router.settings, lambda: next(chances))
        for _ in range(8):
            assert (await stack.http.post("/v1/completions", json=STREAMED)).status_code == 200
        assert await existing.metric("disagg_router_arrivals_total") == 4
        assert await stack.metric("disagg_router_arrivals_total") == 4
        assert [await stack.metric(counted(name, True)) for name in ("upstream", "pools")] == [4, 4]


@pytest.mark.parametrize(("percent", "arrivals"), [(0, 6), (100, 0)])
async def test_none_and_all(tmp_path: Path, percent: int, arrivals: int) -> None:
    async with Stack(tmp_path, *pair()) as existing, split(tmp_path, existing.url, percent) as stack:
        for _ in range(6):
            assert (await stack.http.post("/v1/completions", json=ASKED)).status_code == 200
        assert await stack.metric("disagg_router_arrivals_total") == arrivals


async def test_the_key_of_the_client_goes_there_and_nothing_else(tmp_path: Path) -> None:
    seen: list[dict[str, str]] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append({k.lower(): v for k, v in request.headers.items()} | {"path": request.path})
        return web.json_response({"error": {"message": "no"}}, status=403, headers={"x-other": "1", "retry-after": "7"})

    async with scripted(answer) as url, split(tmp_path, url) as stack:
        sent = {"authorization": "Bearer k", "cookie": "c=1", "x-request-id": "r"}
        got = await stack.http.post("/v1/chat/completions", json={"model": "m", "stream": True}, headers=sent)
        assert (got.status_code, got.json()) == (403, {"error": {"message": "no"}})
        assert got.headers["retry-after"] == "7"
        assert "x-other" not in got.headers
        assert await stack.metric('disagg_router_requests_total{code="403",endpoint="chat"}') == 1
        # Who is refused tells nothing of the service.
        assert await stack.metric(counted("upstream", False)) == 0
    (headers,) = seen
    assert (headers["authorization"], headers["x-request-id"], headers["path"]) == (
        "Bearer k", "r", "/v1/chat/completions",
    )  # fmt: skip
    assert "cookie" not in headers
    assert headers["accept-encoding"] == "identity"


async def test_without_a_key_of_the_router_nothing_goes_there(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret")
    async with (
        Stack(tmp_path, *pair()) as existing,
        split(tmp_path, existing.url, api_keys_file=str(tmp_path / "keys")) as stack,
    ):
        assert (await stack.http.post("/v1/completions", json=ASKED)).status_code == 401
        assert (await stack.http.post("/v1/completions", content=b"{")).status_code == 401
        assert await existing.metric("disagg_router_arrivals_total") == 0


async def failing(request: web.Request, kind: str) -> web.StreamResponse:
    if kind == "500":
        return web.json_response({"error": {"message": "broken"}}, status=500)
    if kind == "429":
        return web.json_response({"error": {"message": "busy"}}, status=429)
    if kind == "redirect":
        raise web.HTTPFound("http://127.0.0.1:9/")
    if kind == "closes":
        assert request.transport is not None
        request.transport.close()
        return web.Response()
    if kind == "silent":
        await asyncio.sleep(60)
    answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
    await answer.prepare(request)
    await answer.write(b'data: {"choices": [{"index": 0, "text": "a"}]}\n\n')
    if kind == "stalls":
        await asyncio.sleep(60)
    elif kind == "breaks off":
        assert request.transport is not None
        request.transport.close()
    elif kind == "says an error":
        await answer.write(b'data: {"error": {"message": "no"}}\n\n')
    return answer


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("500", 500, "broken"),
        ("429", 429, "busy"),
        ("redirect", 502, "upstream_failed"),
        ("closes", 502, "upstream_failed"),
        ("silent", 504, "upstream_timeout"),
        ("stalls", 200, "upstream_timeout"),
        ("breaks off", 200, "upstream_failed"),
        ("says an error", 200, "no"),
    ],
)
async def test_a_service_that_fails_is_told_and_counted(tmp_path: Path, kind: str, status: int, code: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await failing(request, kind)

    limit_s = 0.5 if code == "upstream_timeout" else 15.0
    limits = {"first_token_timeout_s": limit_s, "stall_timeout_s": limit_s}
    async with scripted(answer) as url, split(tmp_path, url, **limits) as stack:
        got = await stack.http.post("/v1/completions", json=STREAMED)
        assert got.status_code == status
        assert code in got.text
        await stack.until(lambda: stack.router.active == 0)
        assert await stack.metric(counted("upstream", False)) == 1
        # The pools answer on.
        assert (await stack.http.post("/v1/completions", json=ASKED, headers={MARK: "1"})).status_code == 200


async def test_pools_that_are_not_there_are_counted_too(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    options = {"upstream_url": "http://127.0.0.1:9", "upstream_percent": 0, "queue_max_wait_s": 0.1}
    async with Stack(tmp_path / "empty", **options) as stack:
        assert (await stack.http.post("/v1/completions", json=STREAMED)).status_code == 503
        assert (await stack.http.post("/v1/completions", json=ASKED)).status_code == 503
        assert await stack.metric(counted("pools", False)) == 1


async def test_a_service_that_is_not_there(tmp_path: Path) -> None:
    async with split(tmp_path, "http://127.0.0.1:9") as stack:
        got = await stack.http.post("/v1/completions", json=ASKED)
        assert (got.status_code, got.json()["error"]["code"]) == (502, "upstream_failed")
        assert (await stack.http.post("/v1/completions", content=b"{")).status_code == 400


async def test_a_name_that_leads_to_a_link_local_address_is_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Clouds hand out the credentials of the machine there, and the client could read them."""
    asked = list[str]()

    async def resolve(self: Any, name: str, port: int = 0, family: int = socket.AF_INET) -> list[dict[str, Any]]:
        place = {"hostname": name, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        asked.append(name)
        return [{**place, "host": "169.254.169.254"}]

    monkeypatch.setattr(aiohttp.resolver.DefaultResolver, "resolve", resolve)
    async with split(tmp_path, "http://leads.there:80") as stack:
        got = await stack.http.post("/v1/completions", json=ASKED)
        assert got.status_code == 502
        assert "leads to a link-local address" in got.json()["error"]["message"]
    assert asked == ["leads.there"]


async def test_an_address_is_called_that_a_name_leads_to_beside_a_refused_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.json_response({"answered": 1})

    async def resolve(self: Any, name: str, port: int = 0, family: int = socket.AF_INET) -> list[dict[str, Any]]:
        place = {"hostname": name, "port": port, "family": socket.AF_INET, "proto": 0, "flags": 0}
        return [{**place, "host": host} for host in ("169.254.169.254", "127.0.0.1")]

    monkeypatch.setattr(aiohttp.resolver.DefaultResolver, "resolve", resolve)
    async with scripted(answer) as url, split(tmp_path, url.replace("127.0.0.1", "both.there")) as stack:
        assert (await stack.http.post("/v1/completions", json=ASKED)).json() == {"answered": 1}


def test_a_url_that_names_such_an_address_is_what_the_policy_has_allowed(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="link-local"):
        guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("169.254.1.1", 80)))
    guarded_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80))).close()


async def test_a_connection_that_the_service_closes_is_no_failure(tmp_path: Path) -> None:
    """The first request finds its connection closed; a second one that does is a failure."""
    asked = 0

    async def answer(request: web.Request) -> web.StreamResponse:
        nonlocal asked
        asked += 1
        return await failing(request, "closes") if asked == 1 else web.json_response({"asked": asked})

    async with scripted(answer) as url, split(tmp_path, url) as stack:
        got = await stack.http.post("/v1/completions", json=ASKED)
        assert (got.status_code, got.json()) == (200, {"asked": 2})


async def test_slow_answers_miss_the_objectives(tmp_path: Path) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        found = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await found.prepare(request)
        for text in (b'{"choices": [{"text": "a"}]}', b'{"choices": [{"text": "b"}]}', b"[DONE]"):
            await asyncio.sleep(0.05)
            await found.write(b"data: " + text + b"\n\n")
        return found

    async with scripted(answer) as url, split(tmp_path, url, objective_tpot_s=0.001) as stack:
        assert (await lines(stack, STREAMED))[-1] == "[DONE]"
        assert await stack.metric(counted("upstream", False)) == 1


@pytest.mark.parametrize("begun", [False, True])
async def test_a_client_that_leaves_ends_the_request_there(tmp_path: Path, begun: bool) -> None:
    ended, running = asyncio.Event(), asyncio.Event()

    async def answer(request: web.Request) -> web.StreamResponse:
        try:
            found = web.StreamResponse(headers={"content-type": "text/event-stream"})
            if begun:
                await found.prepare(request)
                await found.write(b'data: {"choices": [{"text": "a"}]}\n\n')
            running.set()
            await asyncio.sleep(60)
            return found
        finally:
            ended.set()

    async with scripted(answer) as url, split(tmp_path, url) as stack:

        async def ask() -> None:
            async with stack.http.stream("POST", "/v1/completions", json=STREAMED) as got:
                async for _ in got.aiter_bytes():
                    pass

        asking = asyncio.create_task(ask())
        await asyncio.wait_for(running.wait(), 10)
        asking.cancel()
        await asyncio.wait_for(ended.wait(), 10)
        await stack.until(lambda: stack.router.active == 0)
        assert await stack.metric(counted("upstream", False)) == 0
        assert stack.router.upstream is not None
        assert stack.router.upstream._running == 0


async def test_the_number_of_requests_there_is_bounded(tmp_path: Path) -> None:
    running, release = asyncio.Event(), asyncio.Event()

    async def answer(_: web.Request) -> web.Response:
        running.set()
        await release.wait()
        return web.json_response({})

    async with scripted(answer) as url, split(tmp_path, url, upstream_max_running=1) as stack:
        first = asyncio.create_task(stack.http.post("/v1/completions", json=ASKED))
        await asyncio.wait_for(running.wait(), 10)
        refused = await stack.http.post("/v1/completions", json=ASKED)
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "upstream_busy")
        assert refused.headers["retry-after"] == "1"
        release.set()
        assert (await first).status_code == 200
        assert isinstance(await stack.http.post("/v1/completions", json=ASKED), httpx.Response)


async def test_the_cookies_of_one_client_reach_no_other(tmp_path: Path) -> None:
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("cookie"))
        return web.json_response({}, headers={"set-cookie": "session=of-the-first; Path=/"})

    async with scripted(answer) as url, split(tmp_path, url.replace("127.0.0.1", "localhost")) as stack:
        for _ in range(2):
            assert (await stack.http.post("/v1/completions", json=ASKED)).status_code == 200
    assert seen == [None, None]


@pytest.mark.parametrize("value", ["€", "\udce9"], ids=["UTF-8", "Latin-1"])
async def test_headers_are_passed_back_byte_by_byte(tmp_path: Path, value: str) -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        body = b"HTTP/1.1 200 OK\r\nx-request-id: %b\r\ncontent-length: 2\r\n\r\n{}"
        assert request.transport is not None
        request.transport.write(body % value.encode("utf-8", "surrogateescape"))
        await asyncio.sleep(60)
        return web.Response()

    async with scripted(answer) as url, split(tmp_path, url) as stack:
        got = await stack.http.post("/v1/completions", json=ASKED)
        assert got.status_code == 200
        assert dict(got.headers.raw)[b"x-request-id"] == value.encode("utf-8", "surrogateescape")
        await stack.until(lambda: stack.router.active == 0)
        assert stack.router.upstream is not None
        assert stack.router.upstream._running == 0


async def test_a_client_that_leaves_late_has_seen_a_failure(tmp_path: Path) -> None:
    running = asyncio.Event()

    async def answer(_: web.Request) -> web.StreamResponse:
        running.set()
        await asyncio.sleep(60)
        return web.Response()

    async with scripted(answer) as url, split(tmp_path, url, objective_ttft_s=1e-6) as stack:
        asking = asyncio.create_task(stack.http.post("/v1/completions", json=STREAMED))
        await asyncio.wait_for(running.wait(), 10)
        asking.cancel()
        await stack.until(lambda: stack.router.active == 0)
        assert await stack.metric(counted("upstream", False)) == 1
