"""A test of one model that replaces another, with real workers, the router's HTTP interface and KV
over TCP: each answer must be the greedy one of the weights that have the name.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.protocol.client import KEY, body
from tests.worker import checkpoints
from tests.worker.oracle import MODEL
from tests.worker.server.rig import Running, running
from tokenizers import Tokenizer

from disagg_router.main import server_of
from disagg_router.router import Router
from disagg_router.settings import Settings

PROMPTS = ("import os", "def main(", "class Error(Exception):", "return")
N = 6
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def _folder(home: Path, seed: int) -> Path:
    """Write a small model with random weights and the tokenizer of the project's own model."""
    folder = checkpoints.make(home / f"weights-{seed}", seed, vocab_size=2048)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder)
    return folder


async def _answers(folder: Path, key: Path) -> dict[str, str]:
    """Return the greedy answer of a model to each prompt, from a worker that nobody routes to."""
    async with running("both", key, model_uri=f"file://{folder}") as alone:
        found = {}
        for prompt in PROMPTS:
            asked = body(TOKENIZER.encode(prompt).ids, max_new_tokens=N) | {"mode": "local"}
            tokens = [line["token"] for line in await alone.lines("decode", asked) if line["type"] == "token"]
            found[prompt] = TOKENIZER.decode(tokens)
        return found


class _Served:
    """A router and its workers, which come and go, and clients that ask all the time."""

    def __init__(self, folder: Path, stack: AsyncExitStack, known: dict[str, dict[str, str]]) -> None:
        self._folder = folder
        self._stack = stack
        self._known = known
        self._members: dict[str, str] = {}
        self.publish()
        values = {"model_name": "old", "cluster_key_file": folder / "key", "poll_interval_s": 0.1,
                  "membership": f"file://{folder / 'members.json'}"}  # fmt: skip
        self.router = Router(Settings.model_validate(values))
        self.names = ["old"]
        self.right = dict.fromkeys(known, 0)
        self.bad: list[str] = []
        self.over = False

    def publish(self) -> None:
        listed = [{"name": name, "url": url} for name, url in self._members.items()]
        (self._folder / "new.json").write_text(json.dumps({"workers": listed}))
        (self._folder / "new.json").replace(self._folder / "members.json")

    async def until(self, condition: Any) -> None:
        async with asyncio.timeout(60):
            while not condition():
                await asyncio.sleep(0.02)

    async def come(self, name: str, weights: Path) -> list[Running]:
        """Start a pair, and return once it has moved KV."""
        started = []
        for role in ("prefill", "decode"):
            made = running(
                role, self._folder, model_uri=f"file://{weights}", model_name=name, pod_name=f"{role}-{name}"
            )
            started.append(await self._stack.enter_async_context(made))
            self._members[f"{role}-{name}"] = str(started[-1].http.base_url)
        self.publish()
        await self.until(lambda: name in self.router.table.catalogue.live())
        await self.until(lambda: len(set(self.router.handshakes.counts().values()) - {0}) == 1)
        return started

    async def go(self, name: str, pair: list[Running]) -> None:
        """Drain a pair, which nobody asks for any more."""
        for worker in pair:
            worker.worker.draining = True
        await self.until(lambda: not any(w.worker.active for w in pair))
        for role in ("prefill", "decode"):
            del self._members[f"{role}-{name}"]
        self.publish()
        await self.until(lambda: name not in self.router.table.catalogue.offers)

    async def client(self, http: httpx.AsyncClient, number: int) -> None:
        turn = number
        while not self.over:
            turn += 1
            name, prompt = self.names[turn % len(self.names)], PROMPTS[turn % len(PROMPTS)]
            asked = {"model": name, "prompt": prompt, "max_tokens": N, "temperature": 0, "ignore_eos": True}
            answer = await http.post("/v1/completions", json=asked)
            if answer.status_code == 200 and answer.json()["choices"][0]["text"] == self._known[name][prompt]:
                self.right[name] += 1
            else:
                self.bad.append(f"{name}: {answer.status_code} {answer.text}")

    async def more(self, n: int = 12) -> None:
        """Return after `n` more answers for each name that is asked for now."""
        goals = {name: self.right[name] + n for name in self.names}
        await self.until(lambda: self.bad or all(self.right[name] >= goal for name, goal in goals.items()))


@pytest.mark.slow
async def test_each_name_is_answered_by_its_own_weights_through_change_and_revert(tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(KEY)
    old, new = _folder(tmp_path, 1), _folder(tmp_path, 2)
    known = {"old": await _answers(old, tmp_path), "new": await _answers(new, tmp_path)}
    assert all(known["old"][prompt] != known["new"][prompt] for prompt in PROMPTS)
    async with AsyncExitStack() as stack:
        served = _Served(tmp_path, stack, known)
        server = server_of(served.router)
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        tasks = [asyncio.create_task(served.router.run()), asyncio.create_task(server.serve(sockets=[sock]))]
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://127.0.0.1:{sock.getsockname()[1]}", trust_env=False, timeout=60)
        )
        pair = await served.come("old", old)
        clients = [asyncio.create_task(served.client(http, number)) for number in range(4)]
        try:
            await served.more()
            other = await served.come("new", new)
            served.names = ["old", "new"]
            await served.more()
            served.names = ["new"]
            await served.more()
            await served.go("old", pair)
            await served.more()
            pair = await served.come("old", old)
            served.names = ["old"]
            await served.more()
            await served.go("new", other)
            await served.more()
        finally:
            served.over = True
            await asyncio.gather(*clients)
            server.should_exit = True
            await tasks[1]
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
            await served.router.client.close()
    assert served.bad == []
    assert min(served.right.values()) >= 24
