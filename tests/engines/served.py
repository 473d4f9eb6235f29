"""Real vLLM engines, each with its adapter, behind a router: all as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from tests.engines import vllm_process
from tests.engines.vllm_process import LEASE_S, MODEL, MODEL_NAME, Vllm
from tests.fakes.token_worker import BEARER, KEY
from tests.router.real_stack import free_port, process, wait_ready
from tokenizers import Tokenizer

from disagg_wire.engines import VLLM

TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
_WAIT_S = 120.0


def prompts(n: int, longest: int = 1500, seed: int = 7) -> list[list[int]]:
    """Return prompts of real text of 1 to `longest` tokens, spread evenly over their logarithm."""
    text = "".join((MODEL.parents[1] / "docs" / name).read_text() for name in ("protocol.md", "architecture.md"))
    ids: list[int] = TOKENIZER.encode(text).ids
    rng = random.Random(seed)
    lengths = [1, longest, *(int(longest ** rng.random()) for _ in range(n - 2))]
    starts = [rng.randrange(len(ids) - length) for length in lengths]
    return [ids[start : start + length] for start, length in zip(starts, lengths, strict=True)]


def pieces(ids: list[int]) -> list[str]:
    """Return tokens as the router shows them with their log probabilities."""
    return [TOKENIZER.decode([i], skip_special_tokens=False) for i in ids]


@dataclass
class Answer:
    """A stream as its client saw it."""

    tokens: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None
    trace: dict[str, Any] = field(default_factory=dict)


@dataclass
class Served:
    """A router, and the adapters and engines behind it, by name."""

    url: str
    http: httpx.AsyncClient
    engines: dict[str, Vllm]
    adapters: dict[str, subprocess.Popen[bytes]]
    adapter_urls: dict[str, str]
    folder: Path

    async def ask(
        self, prompt: list[int], max_tokens: int, *, at: tuple[int, Callable[[], object]] | None = None, **more: Any
    ) -> Answer:
        """Stream a greedy completion; `at` is a number of tokens and what to do at that point."""
        body = {
            "model": MODEL_NAME, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "stream": True,
            "logprobs": 0, "ignore_eos": True, **more,
        }  # fmt: skip
        answer = Answer()
        async with self.http.stream(
            "POST", f"{self.url}/v1/completions", json=body, headers={"x-disagg-trace": "1"}
        ) as response:
            if response.status_code != 200:
                answer.error = f"{response.status_code} {(await response.aread()).decode()}"
                return answer
            async for line in response.aiter_lines():
                if not line.startswith("data:") or line == "data: [DONE]":
                    continue
                chunk = json.loads(line[5:])
                if "error" in chunk:
                    answer.error = str(chunk["error"])
                    return answer
                answer.trace = chunk.get("disagg", answer.trace)
                for choice in chunk["choices"]:
                    answer.tokens += (choice.get("logprobs") or {}).get("tokens") or []
                    answer.finish_reason = choice["finish_reason"] or answer.finish_reason
                if at is not None and len(answer.tokens) >= at[0]:
                    at[1]()
                    at = None
        return answer

    async def state(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"{self.url}/internal/v1/state")).json()
        return found

    async def info(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"{self.adapter_urls[name]}/internal/v1/info")).json()
        return found

    async def until_paired(self, pairs: int) -> None:
        """Wait until the router has seen KV move over all pairs."""
        async with asyncio.timeout(_WAIT_S):
            while (await self.state())["pairs"] != {"expected": pairs, "healthy": pairs}:
                await asyncio.sleep(0.1)

    async def until_idle(self, within_s: float) -> None:
        """Wait until no engine computes anything and every KV block is free."""
        try:
            async with asyncio.timeout(within_s):
                while any([await self.busy(e) for e in self.engines.values()]):
                    await asyncio.sleep(0.25)
        except TimeoutError:
            held = {name: await self.busy(e) for name, e in self.engines.items()}
            raise AssertionError(f"still held after {within_s:g} s: {held}") from None

    @staticmethod
    async def busy(engine: Vllm) -> list[float]:
        """Return what an engine holds: running and waiting requests, and its share of KV in use."""
        names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
        found = [await engine.metric(name) for name in names]
        return found if any(found) else []


@contextlib.asynccontextmanager
async def served(
    folder: Path, *roles: str, more: tuple[str, ...] = (), version: str = vllm_process.NEWEST, **settings: Any
) -> AsyncIterator[Served]:
    """Start an engine and its adapter for each role, and a router, and wait until all pairs work.

    `more` is added to the arguments of the engines, `settings` to the environment of the adapters.
    Workers are named p0, p1, ..., d0, ...
    """
    (folder / "key").write_bytes(KEY)
    names = [f"{role[0]}{sum(r == role for r in roles[:i])}" for i, role in enumerate(roles)]
    async with contextlib.AsyncExitStack() as stack:
        found = {
            name: await stack.enter_async_context(vllm_process.vllm(folder, role, *more, version=version))
            for name, role in zip(names, roles, strict=True)
        }
        adapters, urls = {}, {}
        for name, role in zip(names, roles, strict=True):
            urls[name] = f"http://127.0.0.1:{(port := free_port())}"
            own = {
                "role": role, "engine": VLLM, "engine_port": found[name].port, "model_uri": f"file://{MODEL}",
                "model_name": MODEL_NAME, "model_files": MODEL, "port": port, "kv_port": 0, "pod_name": name,
                "cluster_key_file": folder / "key", "dtype": "float32", "lease_s": LEASE_S, "max_running": 16,
            }  # fmt: skip
            log = folder / f"adapter-{name}.log"
            adapters[name] = stack.enter_context(process("disagg_adapter", log, **(own | settings)))
        members = folder / "members.json"
        members.write_text(json.dumps({"workers": [{"name": n, "url": u} for n, u in urls.items()]}))
        url = f"http://127.0.0.1:{(port := free_port())}"
        router = {"model_name": MODEL_NAME, "cluster_key_file": folder / "key", "port": port, "poll_interval_s": 0.2,
                  "membership": f"file://{members}"}  # fmt: skip
        stack.enter_context(process("disagg_router", folder / "router.log", **router))
        http = await stack.enter_async_context(
            httpx.AsyncClient(headers={"authorization": BEARER}, trust_env=False, timeout=_WAIT_S)
        )
        await asyncio.gather(*(engine.wait_ready() for engine in found.values()))
        await asyncio.gather(*(wait_ready(http, f"{u}/readyz") for u in [*urls.values(), url]))
        here = Served(url, http, found, adapters, urls, folder)
        await here.until_paired(sum(r == "prefill" for r in roles) * sum(r == "decode" for r in roles))
        yield here
