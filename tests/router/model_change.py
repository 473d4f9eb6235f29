"""Pools of fake workers that are replaced by others, and clients that check every answer."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable
from typing import Any

import httpx
from tests.fakes.token_worker import TokenWorker, expected_text, seed_with
from tests.router.stack import Stack, tokens_of

N = 6
# Router, workers and clients share one process, and perhaps a busy machine.
_LIMIT_S = 60.0
_NUMBERS = itertools.count()


def made(role: str, model: str, weights: str) -> TokenWorker:
    """Return a worker that serves `weights` under the name `model`."""
    worker = TokenWorker(
        f"{role}{next(_NUMBERS)}", role, digest=f"{weights}-digest-of-weights", compat=f"compat-{weights}"
    )
    worker.model, worker.weights = model, weights
    worker.token_interval_s = 0.002
    return worker


def team(model: str, weights: str, size: int = 2) -> list[TokenWorker]:
    return [made(role, model, weights) for role in ("prefill", "decode") for _ in range(size)]


def fingerprint(weights: str) -> str:
    return f"fp_{weights}-digest-of-weights"[:19]


def answer_of(weights: str, prompt: str, seed: int, n: int = N) -> str:
    return expected_text(seed_with(seed, weights), tokens_of(prompt), n)


class Fleet:
    """The workers of a stack, which come and go."""

    def __init__(self, stack: Stack) -> None:
        self._stack = stack
        self.listed = list(stack.workers)

    def _publish(self) -> None:
        self._stack.publish(*self.listed)

    async def _until(self, condition: Callable[[], bool]) -> None:
        await self._stack.until(condition, _LIMIT_S)

    async def come(self, *workers: TokenWorker) -> None:
        """Start workers, which load for a while, and return when the router may use them."""
        for worker in workers:
            worker.state, worker.loads = "starting", True
        await asyncio.gather(*(w.start() for w in workers))
        self._stack.workers += workers
        self.listed += workers
        self._publish()
        names = {w.model for w in workers if w.model}
        await self._until(lambda: names <= self._stack.router.table._coming.names() | self.served())
        for worker in workers:
            worker.state, worker.loads = "ready", False
        await self._until(lambda: {w.name for w in workers} <= self.known() and names <= self.served())

    async def go(self, *workers: TokenWorker) -> None:
        """Drain workers and end them."""
        for worker in workers:
            worker.state = "draining"
        await self._until(lambda: not any(w.running for w in workers))
        self.listed = [w for w in self.listed if w not in workers]
        self._publish()
        await asyncio.gather(*(w.stop() for w in workers))
        await self._until(lambda: not {w.name for w in workers} & self.known())

    async def gone(self) -> None:
        """Return when the router knows that no worker is listed."""
        table = self._stack.router.table
        await self._until(lambda: not (table.workers() or table._membership.members()) and table.names._all_told)

    def served(self) -> set[str]:
        return set(self._stack.router.table.catalogue.live())

    def known(self) -> set[str]:
        return {w.name for w in self._stack.router.table.workers() if w.state == "ready"}


class Load:
    """Clients that ask without a pause for each of `names`, as streams and as whole answers.

    `weights` has the weights that may answer under each name.
    """

    def __init__(self, url: str, weights: dict[str, set[str]], *names: str) -> None:
        self._url = url
        self.weights = weights
        self.names = list(names)
        self.right: dict[str, int] = {}
        self.wrong: list[str] = []
        self.failed: list[str] = []

    async def run(self, clients: int, over: asyncio.Event) -> None:
        async with httpx.AsyncClient(base_url=self._url, trust_env=False, timeout=30) as http:
            await asyncio.gather(*(self._client(http, number, over) for number in range(clients)))

    async def _client(self, http: httpx.AsyncClient, number: int, over: asyncio.Event) -> None:
        for turn in itertools.count():
            if over.is_set():
                return
            name, seed = self.names[(number + turn) % len(self.names)], 1000 * number + turn
            await self._one(http, name, seed, stream=turn % 2 == 1)

    async def _one(self, http: httpx.AsyncClient, name: str, seed: int, *, stream: bool) -> None:
        body: dict[str, Any] = {"model": name, "prompt": f"hi {seed}", "max_tokens": N, "seed": seed, "stream": stream}
        response = await http.post("/v1/completions", json=body)
        if response.status_code != 200 or '"error"' in response.text:
            self.failed.append(f"{name}: {response.status_code} {response.text}")
            return
        lines = [x[6:] for x in response.text.splitlines() if x.startswith("data: {")] if stream else [response.text]
        parts = [json.loads(x) for x in lines]
        text = "".join(p["choices"][0]["text"] for p in parts if p["choices"])
        said = {p["system_fingerprint"] for p in parts} | {p["model"] for p in parts}
        for weights in self.weights[name]:
            if text == answer_of(weights, f"hi {seed}", seed) and said == {name, fingerprint(weights)}:
                self.right[f"{name}={weights}"] = self.right.get(f"{name}={weights}", 0) + 1
                return
        self.wrong.append(f"{name}: {text} {said}")

    async def more(self, of: str, n: int = 20) -> None:
        """Return when `n` more right answers for "name=weights" have come."""
        goal = self.right.get(of, 0) + n
        async with asyncio.timeout(_LIMIT_S):
            while self.right.get(of, 0) < goal and not self.failed and not self.wrong:
                await asyncio.sleep(0.01)

    async def settled(self, clients: int) -> None:
        """Return when every request that was under way has been answered."""
        goal = sum(self.right.values()) + 2 * clients
        async with asyncio.timeout(_LIMIT_S):
            while sum(self.right.values()) < goal and not self.failed and not self.wrong:
                await asyncio.sleep(0.01)
