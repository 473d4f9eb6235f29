"""An engine that computes nothing: it takes the time that a model would take, and its metrics have
vLLM's names.

A small machine can run a dozen of them, where it could not run one engine at the speed of a GPU. A
prefill engine computes one prompt after the other. A decode engine gives one token to each of its
sequences in a step. It runs alone in a pod: this file is all that it needs beside starlette,
uvicorn and prometheus_client.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator

import uvicorn
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

PREFILL_BASE_S, PREFILL_S_PER_TOKEN = 0.01, 0.00024
STEP_BASE_S, STEP_S_PER_SEQUENCE = 0.02, 0.0012
MOST_SEQUENCES = 64
BLOCKS, BLOCK_SIZE = 4000, 16
_LABELS = {"model_name": "m", "engine": "0"}
_SECONDS = (0.005, 0.01, 0.025, 0.04, 0.05, 0.06, 0.075, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 40, 80)
_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)


class Metrics:
    """The series of vLLM 0.32 that tell what an engine does."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.waiting = self._gauge("num_requests_waiting")
        self.running = self._gauge("num_requests_running")
        self.kv = self._gauge("kv_cache_usage_perc")
        self.prompt = self._counter("prompt_tokens")
        self.generated = self._counter("generation_tokens")
        self.computed = Counter(
            "vllm:prompt_tokens_by_source", "-", (*_LABELS, "source"), registry=self.registry
        ).labels(**_LABELS, source="local_compute")
        self.ended = Counter("vllm:request_success", "-", (*_LABELS, "finished_reason"), registry=self.registry).labels(
            **_LABELS, finished_reason="length"
        )
        self.prompts = self._histogram("request_prompt_tokens", _TOKENS)
        self.answers = self._histogram("request_generation_tokens", _TOKENS)
        self.steps = self._histogram("iteration_tokens_total", _TOKENS)
        self.first = self._histogram("time_to_first_token_seconds", _SECONDS)
        self.gaps = self._histogram("inter_token_latency_seconds", _SECONDS)
        self.per_token = self._histogram("request_time_per_output_token_seconds", _SECONDS)
        self.prefill = self._histogram("request_prefill_time_seconds", _SECONDS)
        config = Gauge(
            "vllm:cache_config_info", "-", ("block_size", "num_gpu_blocks", "engine"), registry=self.registry
        )
        config.labels(str(BLOCK_SIZE), str(BLOCKS), "0").set(1)
        start = Gauge("process_start_time_seconds", "-", registry=self.registry)
        start.set(time.time())

    def _gauge(self, name: str) -> Gauge:
        return Gauge(f"vllm:{name}", "-", tuple(_LABELS), registry=self.registry).labels(**_LABELS)

    def _counter(self, name: str) -> Counter:
        return Counter(f"vllm:{name}", "-", tuple(_LABELS), registry=self.registry).labels(**_LABELS)

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"vllm:{name}", "-", tuple(_LABELS), registry=self.registry, buckets=buckets).labels(**_LABELS)


class Sequence:
    """One request of a decode engine."""

    def __init__(self, prompt: int, tokens: int) -> None:
        self.prompt, self.tokens = prompt, tokens
        self.made = 0
        self.came_s = time.monotonic()
        self.first_s = 0.0
        self.over = asyncio.Event()


class Engine:
    """The engine of one role, which is ready `cold_start_s` after its start."""

    def __init__(self, role: str, cold_start_s: float) -> None:
        self.role = role
        self.metrics = Metrics()
        self._ready_s = time.monotonic() + cold_start_s
        self._turn = asyncio.Lock()
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._work = asyncio.Event()

    async def serve_step_by_step(self) -> None:
        """Give tokens to the sequences of decode until cancelled."""
        while True:
            while self._waiting and len(self._running) < MOST_SEQUENCES:
                self._running.append(self._waiting.pop(0))
            self._tell()
            if not self._running:
                self._work.clear()
                await self._work.wait()
                continue
            step_s = STEP_BASE_S + STEP_S_PER_SEQUENCE * len(self._running)
            began_s = time.monotonic()
            await asyncio.sleep(step_s)
            self._step(time.monotonic(), time.monotonic() - began_s)

    def _step(self, now_s: float, took_s: float) -> None:
        self.metrics.steps.observe(len(self._running))
        self.metrics.generated.inc(len(self._running))
        for s in self._running:
            s.made += 1
            if s.made == 1:
                s.first_s = now_s
                self.metrics.first.observe(now_s - s.came_s)
            else:
                self.metrics.gaps.observe(took_s)
            if s.made == s.tokens:
                self._ended(s.prompt, s.tokens)
                self.metrics.per_token.observe((now_s - s.first_s) / max(1, s.tokens - 1))
                s.over.set()
        self._running = [s for s in self._running if s.made < s.tokens]

    def _ended(self, prompt: int, tokens: int) -> None:
        self.metrics.ended.inc()
        self.metrics.prompt.inc(prompt)
        self.metrics.prompts.observe(prompt)
        self.metrics.answers.observe(tokens)

    def _tell(self) -> None:
        self.metrics.waiting.set(len(self._waiting))
        self.metrics.running.set(len(self._running))
        held = sum(s.prompt + s.made for s in self._running)
        self.metrics.kv.set(min(1.0, held / (BLOCKS * BLOCK_SIZE)))

    async def _prefill(self, prompt: int) -> None:
        came_s = time.monotonic()
        self.metrics.waiting.inc()
        async with self._turn:
            self.metrics.waiting.dec()
            self.metrics.running.inc()
            took_s = PREFILL_BASE_S + PREFILL_S_PER_TOKEN * prompt
            await asyncio.sleep(took_s)
            self.metrics.running.dec()
        self.metrics.prefill.observe(took_s)
        self.metrics.computed.inc(prompt)
        self.metrics.generated.inc()
        self.metrics.first.observe(time.monotonic() - came_s)
        self._ended(prompt, 1)

    async def _decode(self, prompt: int, tokens: int) -> Sequence:
        sequence = Sequence(prompt, tokens)
        self._waiting.append(sequence)
        self._tell()
        self._work.set()
        await sequence.over.wait()
        return sequence

    async def complete(self, request: Request) -> Response:
        """Serve one request: its prompt, or its further tokens."""
        body = await request.json()
        prompt, tokens = len(body["prompt"]), int(body["max_tokens"])
        if self.role == "prefill":
            await self._prefill(prompt)
            return JSONResponse({})
        served = await self._decode(prompt, tokens)
        return JSONResponse({"first_after_s": served.first_s - served.came_s})

    async def health(self, _: Request) -> Response:
        """Return 200 once the engine has loaded its model, as it were."""
        return Response(status_code=200 if time.monotonic() >= self._ready_s else 503)

    async def page(self, _: Request) -> Response:
        """Return the page of metrics."""
        return Response(generate_latest(self.metrics.registry), media_type="text/plain")


def app_of(engine: Engine) -> Starlette:
    """Return the HTTP server of an engine."""

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        steps = asyncio.create_task(engine.serve_step_by_step())
        yield
        steps.cancel()

    routes = [
        Route("/v1/completions", engine.complete, methods=["POST"]),
        Route("/health", engine.health),
        Route("/metrics", engine.page),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


if __name__ == "__main__":
    uvicorn.run(
        app_of(Engine(os.environ["ROLE"], float(os.environ["COLD_START_S"]))),
        host="0.0.0.0",
        port=8000,
        log_level="warning",
        timeout_graceful_shutdown=60,
    )
