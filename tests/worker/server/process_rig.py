"""Workers as processes."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from tests.ports import free_port
from tests.protocol.client import HEADERS

REPO = Path(__file__).parents[3]


@dataclass(frozen=True)
class Process:
    running: asyncio.subprocess.Process
    http: httpx.AsyncClient

    async def ready(self) -> None:
        deadline_s = time.monotonic() + 60
        while True:
            try:
                if (await self.http.get("/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                pass
            assert self.running.returncode is None
            assert time.monotonic() < deadline_s
            await asyncio.sleep(0.05)

    async def log(self) -> str:
        """Wait for the end of the process and return its log."""
        assert self.running.stderr is not None
        async with asyncio.timeout(60):
            return (await self.running.stderr.read()).decode()


@asynccontextmanager
async def process(
    folder: Path,
    role: str = "both",
    within: Sequence[str] = (),
    more: Mapping[str, str] | None = None,
    **variables: Any,
) -> AsyncIterator[Process]:
    """Run a worker. Its command follows that in `within`; `more` is added to its environment."""
    host, port = str(variables.get("host", "127.0.0.1")), free_port()
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPYCACHEPREFIX") if name in os.environ}
    environment |= {
        "PYTHONPATH": str(REPO / "worker"),
        "OMP_NUM_THREADS": "1",
        "DISAGG_ROLE": role,
        "DISAGG_MODEL_URI": f"file://{folder}",
        "DISAGG_MODEL_NAME": "tiny",
        "DISAGG_CLUSTER_KEY_FILE": str(folder / "key"),
        "DISAGG_PORT": str(port),
        "DISAGG_KV_PORT": "0",
        "DISAGG_KV_CACHE_BYTES": str(64 << 20),
    }
    environment |= {f"DISAGG_{k.upper()}": str(v) for k, v in variables.items()} | dict(more or {})
    started = await asyncio.create_subprocess_exec(
        *within, sys.executable, "-m", "disagg_worker", env=environment, stderr=asyncio.subprocess.PIPE, cwd="/"
    )
    try:
        async with httpx.AsyncClient(
            base_url=f"http://{host}:{port}", headers=HEADERS, timeout=30, trust_env=False
        ) as http:
            yield Process(started, http)
    finally:
        if started.returncode is None:
            started.kill()
        await started.communicate()
