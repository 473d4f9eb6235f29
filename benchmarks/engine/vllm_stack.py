"""Real vLLM engines, each with its adapter, behind a router: all as processes of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from benchmarks.engine import vllm_process
from benchmarks.engine.vllm_process import LEASE_S, MODEL, MODEL_NAME, Vllm
from benchmarks.processes import process, wait_ready
from disagg_operator.cli.processes import free_port
from disagg_wire.cluster_key import bearer_of
from disagg_wire.engines import VLLM
from disagg_wire.roles import DECODE, PREFILL

WAIT_S = 120.0
MAX_RUNNING = 16


@dataclass
class Stack:
    """A router, and the adapters and engines behind it, by name."""

    url: str
    http: httpx.AsyncClient
    engines: dict[str, Vllm]
    adapters: dict[str, subprocess.Popen[bytes]]
    adapter_urls: dict[str, str]
    folder: Path

    async def state(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"{self.url}/internal/v1/state")).json()
        return found

    async def info(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"{self.adapter_urls[name]}/internal/v1/info")).json()
        return found

    async def until_paired(self, pairs: int) -> None:
        """Wait until the router has seen KV move over all pairs."""
        async with asyncio.timeout(WAIT_S):
            while (await self.state())["pairs"] != {"expected": pairs, "healthy": pairs}:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def kv_tokens(self, name: str) -> int:
        """Return the number of tokens that the KV cache of an engine holds."""
        kv = (await self.info(name))["kv"]
        return int(kv["blocks_total"] * kv["block_size_tokens"])


@contextlib.asynccontextmanager
async def stack(
    folder: Path, *roles: str, more: tuple[str, ...] = (), version: str = vllm_process.NEWEST,
    model: Path = MODEL, **settings: Any,
) -> AsyncIterator[Stack]:  # fmt: skip
    """Start an engine and its adapter for each role, and a router, and wait until all pairs work.

    `more` is added to the arguments of the engines, `settings` to the environment of the adapters.
    Workers are named p0, p1, ..., d0, ...
    """
    key = secrets.token_hex(32).encode()
    (folder / "key").write_bytes(key)
    names = [f"{role[0]}{sum(r == role for r in roles[:i])}" for i, role in enumerate(roles)]
    async with contextlib.AsyncExitStack() as stack:
        found = {
            name: await stack.enter_async_context(vllm_process.vllm(folder, role, *more, version=version, model=model))
            for name, role in zip(names, roles, strict=True)
        }
        adapters, urls = {}, {}
        for name, role in zip(names, roles, strict=True):
            urls[name] = f"http://127.0.0.1:{(port := free_port())}"
            own = {
                "role": role, "engine": VLLM, "engine_port": found[name].port, "model_uri": f"file://{model}",
                "model_name": MODEL_NAME, "model_files": model, "port": port, "kv_port": 0, "pod_name": name,
                "cluster_key_file": folder / "key", "dtype": "float32", "lease_s": LEASE_S,
                "max_running": MAX_RUNNING,
            }  # fmt: skip
            log = folder / f"adapter-{name}.log"
            adapters[name] = stack.enter_context(process("disagg_adapter", log, **(own | settings)))
        members = folder / "members.json"
        members.write_text(json.dumps({"workers": [{"name": n, "url": u} for n, u in urls.items()]}))
        url = f"http://127.0.0.1:{(port := free_port())}"
        router = {"model_name": MODEL_NAME, "cluster_key_file": folder / "key", "port": port, "poll_interval_s": 0.2,
                  "membership": f"file://{members}"}  # fmt: skip
        stack.enter_context(process("disagg_router", folder / "router.log", **router))
        headers = {"authorization": f"Bearer {bearer_of(key)}"}
        http = await stack.enter_async_context(httpx.AsyncClient(headers=headers, trust_env=False, timeout=WAIT_S))
        await asyncio.gather(*(engine.wait_ready() for engine in found.values()))
        await asyncio.gather(*(wait_ready(http, f"{u}/readyz") for u in [*urls.values(), url]))
        here = Stack(url, http, found, adapters, urls, folder)
        await here.until_paired(sum(r == PREFILL for r in roles) * sum(r == DECODE for r in roles))
        yield here
