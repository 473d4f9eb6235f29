"""An engine that computes nothing: vLLM's HTTP interface with tokens as fast as they can be sent.

It stands for vLLM where the adapter itself is measured or where an answer must come at a known
time. `python -m benchmarks.adapter.scripted_engine PORT` serves it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

MODEL = "m"
# Tokens that say how the engine answers: the prompt is [kind, tokens in a chunk, microseconds
# between chunks].
SCRIPT = 3

METRICS = """process_start_time_seconds 1.0
vllm:cache_config_info{block_size="16",cache_dtype="auto",num_gpu_blocks="1000000"} 1.0
vllm:kv_cache_usage_perc{engine="0"} 0.0
vllm:iteration_tokens_total_count{engine="0"} %d
"""


def event(tokens: list[int], reason: str | None) -> bytes:
    """Return a chunk as vLLM 0.32 writes it."""
    choice = {
        "index": 0,
        "finish_reason": reason,
        "stop_reason": None,
        "token_ids": tokens,
        "routed_experts": None,
        "sampling_mask": None,
        "weight_versions": None,
        "logprobs": None,
    }
    body = {"request_id": "generate-tokens-r", "usage": None, "output_mode": "tokens", "choices": [choice]}
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def time_token() -> int:
    """Return the monotonic clock in units of 10 microseconds, as a token."""
    return time.monotonic_ns() // 10_000 % (1 << 31)


async def _tokens(count: int, piece: int, pause_s: float) -> AsyncIterator[bytes]:
    """Yield chunks whose first token is the time at which they were sent."""
    due_s = asyncio.get_running_loop().time()
    for n in range(0, count, piece):
        due_s += pause_s
        # Without a pause, others get their turn all the same.
        await asyncio.sleep(max(0.0, due_s - asyncio.get_running_loop().time()) if pause_s else 0)
        size = min(piece, count - n)
        yield event([time_token(), *[1] * (size - 1)], "length" if n + size == count else None)
    yield b'data: {"request_id":"r","usage":{"prompt_tokens":3},"output_mode":"tokens","choices":[]}\n\n'
    yield b"data: [DONE]\n\n"


async def generate(request: Request) -> Response:
    body = await request.json()
    count, prompt = body["sampling_params"]["max_tokens"], body["token_ids"]
    piece, pause_us = prompt[1:SCRIPT] if len(prompt) >= SCRIPT else (1, 0)
    if not body["stream"]:
        return JSONResponse({"choices": [{"token_ids": [1] * count, "finish_reason": "length"}]})
    return StreamingResponse(_tokens(count, piece, pause_us / 1e6), media_type="text/event-stream")


def app() -> Starlette:
    looks = 0

    async def metrics(request: Request) -> Response:
        nonlocal looks
        looks += 1
        return PlainTextResponse(METRICS % looks)

    async def ok(request: Request) -> Response:
        return PlainTextResponse("")

    async def version(request: Request) -> Response:
        return JSONResponse({"version": "0.32.0"})

    async def models(request: Request) -> Response:
        return JSONResponse({"data": [{"id": MODEL, "max_model_len": 1 << 20, "parent": None}]})

    return Starlette(
        routes=[
            Route("/health", ok),
            Route("/version", version),
            Route("/v1/models", models),
            Route("/metrics", metrics),
            Route("/inference/v1/generate", generate, methods=["POST"]),
        ]
    )


def main() -> None:
    config = uvicorn.Config(app(), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", access_log=False)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(uvicorn.Server(config).serve())


if __name__ == "__main__":
    main()
