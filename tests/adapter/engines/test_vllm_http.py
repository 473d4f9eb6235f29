"""Tests of vLLM's module over HTTP, with a server that says what a test wants at the time it wants.

No vLLM can be made to fail at each of these points; tests/engines has what a real one does.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from tests.adapter.engines.test_vllm import HAND_OVER, PAGE, event, work
from tests.adapter.rig import listening, until

from disagg_adapter.engines.contract import Delta, EngineFault, HandOver, NotReady, Output, Unusable
from disagg_adapter.engines.http_client import EngineHttp
from disagg_adapter.engines.vllm import Vllm
from disagg_wire import codes

END = b"data: [DONE]\n\n"


def data(said: Any) -> bytes:
    return b"data: " + json.dumps(said).encode() + b"\n\n"


class Server:
    """A server whose streams are what the test puts into `said`; None ends one."""

    def __init__(self) -> None:
        self.said: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.bodies: list[Any] = []
        self.closed = asyncio.Event()
        self.connections: set[Any] = set()
        self.answer: Response | None = None
        self.version = "0.32.0+cpu"
        self.page = PAGE
        self.models: Any = {
            "data": [{"id": "m", "max_model_len": 2048}, {"id": "lora", "parent": "m", "root": "/loras/1"}]
        }

    async def _stream(self) -> AsyncIterator[bytes]:
        try:
            while (piece := await self.said.get()) is not None:
                yield piece
        finally:
            self.closed.set()

    async def generate(self, request: Request) -> Response:
        self.bodies.append(await request.json())
        self.connections.add(request.client)
        return self.answer or StreamingResponse(self._stream(), media_type="text/event-stream")

    def app(self) -> Starlette:
        async def health(request: Request) -> Response:
            return Response()

        async def version(request: Request) -> Response:
            return JSONResponse({"version": self.version})

        async def models(request: Request) -> Response:
            return JSONResponse(self.models)

        async def metrics(request: Request) -> Response:
            return Response(self.page)

        return Starlette(
            routes=[
                Route("/health", health),
                Route("/version", version),
                Route("/v1/models", models),
                Route("/metrics", metrics),
                Route("/inference/v1/generate", self.generate, methods=["POST"]),
            ]
        )


@contextlib.asynccontextmanager
async def serving(lease_s: float = 20.0) -> AsyncIterator[tuple[Server, Vllm]]:
    server = Server()
    async with listening(server.app()) as (host, port):
        engine = Vllm(EngineHttp(f"http://{host}:{port}"), "m", lease_s)
        try:
            yield server, engine
        finally:
            await engine.close()


async def test_what_an_engine_is() -> None:
    async with serving() as (_, engine):
        found = await engine.identify()
        assert (found.version, found.connector, found.max_model_len) == ("0.32.0+cpu", "nixl-14", 2048)
        assert (found.block_size_tokens, found.blocks_total, found.adapters) == (32, 682, ("lora",))
        assert found.adapter_places == {"lora": "/loras/1"}
        assert found.started == (await engine.read()).started == "1796018252.74"


async def test_what_cannot_serve_says_why() -> None:
    async with serving() as (server, engine):
        server.version = "0.99.1"
        with pytest.raises(Unusable, match=r"vLLM 0\.99\.1 is none of the versions") as found:
            await engine.identify()
        assert found.value.reason == "UnknownEngineVersion"
        server.version, server.models = "0.31.0", {"data": [{"id": "other"}]}
        with pytest.raises(Unusable, match="vLLM serves other and not m"):
            await engine.identify()
        server.models, server.page = {"data": [{"id": "m", "max_model_len": 8}]}, ""
        with pytest.raises(NotReady, match="size of its KV cache"):
            await engine.identify()
    nobody = Vllm(EngineHttp("http://127.0.0.1:1"), "m", 20.0)
    with pytest.raises(NotReady, match="does not answer /health"):
        await nobody.identify()
    with pytest.raises(EngineFault) as refused:
        await nobody.read()
    assert refused.value.is_gone
    await nobody.close()


async def test_tokens_come_as_they_are_said_and_the_connection_serves_the_next_request() -> None:
    async with serving() as (server, engine):
        for _ in range(3):
            deltas = engine.generate(work(temperature=0.0))
            server.said.put_nowait(data(event(token_ids=[5])))
            assert await anext(deltas) == Delta((Output(5),))
            for piece in (
                data(event(token_ids=[6], finish_reason="stop")),
                data({"choices": [], "usage": {}}),
                END,
                None,
            ):
                server.said.put_nowait(piece)
            assert [delta async for delta in deltas] == [Delta((Output(6),), "stop")]
        assert len(server.connections) == 1
        assert server.bodies[0]["stream_options"] == {"include_usage": True}
        assert "kv_transfer_params" not in server.bodies[0]


async def test_an_end_that_was_said_counts_though_the_stream_breaks_off_after_it() -> None:
    async with serving() as (server, engine):
        for piece in (data(event(token_ids=[6], finish_reason="stop")), None):
            server.said.put_nowait(piece)
        assert [delta async for delta in engine.generate(work())] == [Delta((Output(6),), "stop")]


@pytest.mark.parametrize("pieces", [[], [data(event(token_ids=[5]))], [b"data: {\n\n"], [b"data: " + b"x" * 5_000_000]])
async def test_a_stream_that_breaks_off_or_is_garbled_is_a_fault(pieces: list[bytes]) -> None:
    async with serving() as (server, engine):
        for piece in (*pieces, None):
            server.said.put_nowait(piece)
        with pytest.raises(EngineFault) as found:
            _ = [delta async for delta in engine.generate(work())]
        assert (found.value.code, found.value.retryable) == (codes.INTERNAL, True)


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [(400, codes.INVALID_REQUEST, False), (404, codes.INVALID_REQUEST, False), (422, codes.INVALID_REQUEST, False),
     (429, codes.NO_CAPACITY, True), (503, codes.NO_CAPACITY, True), (500, codes.INTERNAL, True)],
)  # fmt: skip
async def test_a_refusal_means_what_its_status_says(status: int, code: str, retryable: bool) -> None:
    async with serving() as (server, engine):
        server.answer = JSONResponse({"error": {"message": "no", "code": status}}, status)
        for call in (engine.generate(work()), engine.prefill(work())):
            with pytest.raises(EngineFault, match="no") as found:
                await anext(call)
            assert (found.value.code, found.value.retryable) == (code, retryable)
        with pytest.raises(EngineFault):
            await engine.probe()


async def test_prefill_asks_for_a_hand_over_and_decode_sends_it_unchanged() -> None:
    async with serving() as (server, engine):
        server.answer = JSONResponse({"choices": [{"token_ids": [75]}], "kv_transfer_params": dict(HAND_OVER)})
        (handover,) = [found async for found in engine.prefill(work())]
        asked = server.bodies[-1]
        assert (asked["stream"], asked["sampling_params"]["max_tokens"]) == (False, 1)
        assert asked["kv_transfer_params"]["do_remote_decode"] is True
        server.answer = None
        for piece in (data(event(token_ids=[75], finish_reason="length")), END, None):
            server.said.put_nowait(piece)
        assert [delta async for delta in engine.decode(work(), handover)] == [Delta((Output(75),), "length")]
        assert server.bodies[-1]["kv_transfer_params"] == HAND_OVER
        assert server.bodies[-1]["token_ids"] == asked["token_ids"]


async def test_kv_that_was_not_read_is_a_failed_transfer_and_later_errors_are_not() -> None:
    async with serving() as (server, engine):
        error = data({"error": {"message": "Internal server error", "code": 500}})
        for pieces, code in (([error], codes.TRANSFER_FAILED), ([data(event(token_ids=[5])), error], codes.INTERNAL)):
            for piece in (*pieces, END, None):
                server.said.put_nowait(piece)
            with pytest.raises(EngineFault) as found:
                _ = [delta async for delta in engine.decode(work(), HandOver(dict(HAND_OVER)))]
            assert (found.value.code, found.value.retryable) == (code, True)


async def _cancelled_before_the_first_token(server: Server, engine: Vllm) -> None:
    first = asyncio.ensure_future(anext(engine.decode(work(), HandOver(dict(HAND_OVER)))))
    await until(lambda: len(server.bodies) == 1)
    first.cancel()
    await asyncio.wait({first})


async def test_a_decode_that_is_cancelled_while_it_reads_is_closed_at_its_first_token() -> None:
    async with serving() as (server, engine):
        await _cancelled_before_the_first_token(server, engine)
        server.said.put_nowait(data({"choices": []}))
        await until(server.said.empty)
        assert not server.closed.is_set()
        server.said.put_nowait(data(event(token_ids=[5])))
        await asyncio.wait_for(server.closed.wait(), 30)


async def test_a_decode_that_never_reads_is_closed_after_the_lease() -> None:
    async with serving(lease_s=-4.95) as (server, engine):
        await _cancelled_before_the_first_token(server, engine)
        await asyncio.wait_for(server.closed.wait(), 30)


async def test_a_decode_that_is_cancelled_later_is_closed_at_once() -> None:
    async with serving() as (server, engine):
        deltas = engine.decode(work(), HandOver(dict(HAND_OVER)))
        server.said.put_nowait(data(event(token_ids=[5])))
        await anext(deltas)
        await deltas.aclose()
        await asyncio.wait_for(server.closed.wait(), 30)


async def test_a_probe_is_one_token_of_a_prompt_that_is_in_no_cache() -> None:
    async with serving() as (server, engine):
        server.answer = JSONResponse({"choices": [{"token_ids": [1]}]})
        await engine.probe()
        await engine.probe()
        assert [body["token_ids"] for body in server.bodies] == [[2], [1]]
        assert server.bodies[0]["sampling_params"]["max_tokens"] == 1
