"""A router and fake workers on real sockets, in the event loop of the test."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import openai
from tests.fakes.token_worker import BEARER, KEY, TokenWorker

from disagg_router import settings
from disagg_router.main import server_of
from disagg_router.router import Router

MODEL = "m"


def pair(number: int = 0) -> tuple[TokenWorker, TokenWorker]:
    return TokenWorker(f"p{number}", "prefill"), TokenWorker(f"d{number}", "decode")


class Stack:
    """A router and its workers, used as `async with Stack(tmp_path, workers...) as stack`.

    When the block is entered, the handshakes of the pairs, if there are any, are done.
    """

    def __init__(self, folder: Path, *workers: TokenWorker, **options: Any) -> None:
        self._folder = folder
        self._members = folder / "members.json"
        self.workers = list(workers)
        (folder / "key").write_bytes(KEY)
        values = {"model_name": MODEL, "cluster_key_file": str(folder / "key"), "membership": f"file://{self._members}",
                  "poll_interval_s": 0.05, "request_timeout_s": 50, "queue_max_wait_s": 40} | options  # fmt: skip
        self.router = Router(settings.Settings.model_validate(values))
        self.router.table.breaker.first_s = 0.05
        self.router.table.breaker.dice = lambda: 1.0
        self.url = ""

    async def __aenter__(self) -> Stack:
        await asyncio.gather(*(w.start() for w in self.workers))
        self.publish()
        sock = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        self._server = server_of(self.router)
        self._background = asyncio.create_task(self.router.run())
        self._serving = asyncio.create_task(self._server.serve(sockets=[sock]))
        self.http = httpx.AsyncClient(base_url=self.url, trust_env=False, timeout=60)
        self.openai = openai.AsyncOpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)
        await self.until(lambda: self._server.started and self.router.table.synced)
        if self.workers:
            await self.until(
                lambda: (
                    len(self.router.table.workers()) == len(self.workers) and bool(self.router.table.catalogue.offers)
                )
            )
            await self.until(lambda: self.healthy() == self.expected_pairs())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.openai.close()
        await self.http.aclose()
        await asyncio.gather(*(w.stop() for w in self.workers))
        self._server.should_exit = True
        await self._serving
        self._background.cancel()
        await asyncio.gather(self._background, return_exceptions=True)
        await self.router.close()

    def publish(self, *workers: TokenWorker, pools: dict[str, str] | None = None, canary: str = "") -> None:
        """Write the membership file with these workers or all of them, with their pools by name,
        and with what the operator says of their revisions.
        """
        listed = [
            {"name": w.name, "url": w.url, "pool": (pools or {}).get(w.name), "canary": canary}
            for w in workers or self.workers
        ]
        fresh = self._members.with_suffix(".new")
        fresh.write_text(json.dumps({"workers": listed}))
        fresh.replace(self._members)

    def expected_pairs(self) -> int:
        pairs = [(p, d) for p in self.workers for d in self.workers if p.role == "prefill" and d.role == "decode"]
        return len([1 for p, d in pairs if p.compat == d.compat])

    def healthy(self) -> int:
        return self.router.handshakes.counts()["healthy"]

    async def until(self, condition: Any, limit_s: float = 60.0) -> None:
        """Wait for a condition that no event reports."""
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.01)

    async def complete(
        self, prompt: str | list[str] | list[int] | list[list[int]] = "hello", **fields: Any
    ) -> httpx.Response:
        body = {"model": MODEL, "prompt": prompt, "max_tokens": 8, "seed": 5} | fields
        return await self.http.post("/v1/completions", json=body, headers={"x-disagg-trace": "1"})

    async def state(self) -> dict[str, Any]:
        answer = await self.http.get("/internal/v1/state", headers={"authorization": BEARER})
        content: dict[str, Any] = answer.json()
        return content

    async def metric(self, line: str) -> float:
        """Return the value of one sample, or 0 if there is none yet."""
        text = (await self.http.get("/metrics")).text
        return next((float(x.rsplit(" ", 1)[1]) for x in text.splitlines() if x.startswith(line + " ")), 0.0)


def tokens_of(text: str) -> list[int]:
    """Return the tokens of plain text as the fake worker's tokenizer reads it."""
    return [3 + b for b in text.encode()]
