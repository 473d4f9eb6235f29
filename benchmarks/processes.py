"""Processes of this project as children of a benchmark or a test."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

ROOT = Path(__file__).parents[1]
_START_TIMEOUT_S = 90.0


@contextmanager
def process(module: str, log: Path, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run `python -m module` with these DISAGG_* settings until the block ends."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DISAGG_")}
    environment |= {"PYTHONPATH": str(ROOT / "worker"), "OMP_NUM_THREADS": "1"}
    environment |= {f"DISAGG_{k.upper()}": str(v) for k, v in settings.items()}
    with (
        log.open("wb") as out,
        subprocess.Popen([sys.executable, "-m", module], env=environment, stdout=out, stderr=out) as child,
    ):
        try:
            yield child
        finally:
            child.terminate()
            try:
                child.wait(20)
            except subprocess.TimeoutExpired:
                child.kill()


async def wait_ready(http: httpx.AsyncClient, url: str) -> None:
    """Wait until the URL answers 200."""
    async with asyncio.timeout(_START_TIMEOUT_S):
        while True:
            with contextlib.suppress(httpx.TransportError):
                if (await http.get(url)).status_code == 200:
                    return
            await asyncio.sleep(0.05)
