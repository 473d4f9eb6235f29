"""Tests of chats through the router, with real workers and KV over TCP: decode keeps what it has,
only the rest is sent, and what is little is prefilled there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.protocol.client import KEY, body, tokens_of
from tests.worker import checkpoints
from tests.worker.oracle import MODEL
from tests.worker.server.rig import Running, prompt, running
from tokenizers import Tokenizer

from disagg_router.main import server_of
from disagg_router.router import Router
from disagg_router.settings import Settings

SIZE = 16
NEW = 32
TOKENIZER = Tokenizer.from_file(str(MODEL / "tokenizer.json"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = checkpoints.make(tmp_path_factory.mktemp("weights"), 3, vocab_size=2048, max_position_embeddings=4096)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(MODEL / name, folder)
    return folder


@dataclass(frozen=True)
class Served:
    """A router over HTTP, and its workers."""

    http: httpx.AsyncClient
    workers: list[Running]
    router: Router

    async def idle(self) -> None:
        """Wait until the router knows that nothing runs."""
        async with asyncio.timeout(20):
            while any(w.running_requests for w in self.router.table.workers()):
                await asyncio.sleep(0.02)

    async def ask(self, tokens: list[int]) -> tuple[str, dict[str, Any]]:
        """Return the answer to a prompt and what the router says of how it came."""
        asked = {"model": "m", "prompt": tokens, "max_tokens": NEW, "temperature": 0, "ignore_eos": True}
        answer = await self.http.post("/v1/completions", json=asked, headers={"x-disagg-trace": "1"})
        assert answer.status_code == 200, answer.text
        content = answer.json()
        return content["choices"][0]["text"], content["disagg"]

    async def counted(self, series: str) -> float:
        page = (await self.http.get("/metrics")).text
        return next((float(x.rsplit(" ", 1)[1]) for x in page.splitlines() if x.startswith(series + " ")), 0.0)

    async def moved(self) -> float:
        """Return the bytes of KV that the prefill worker has sent."""
        page = (await self.workers[0].http.get("/metrics")).text
        found = [x for x in page.splitlines() if x.startswith("disagg_kv_transfer_bytes_total{")]
        return sum(float(line.rsplit(" ", 1)[1]) for line in found)

    def kv_bytes(self, tokens: int) -> int:
        assert self.workers[0].worker.node is not None
        return tokens * self.workers[0].worker.node.engine.layout.bytes_per_token

    async def empty(self) -> None:
        for worker in self.workers:
            await worker.empty()


@contextlib.asynccontextmanager
async def served(folder: Path, weights: Path, decodes: int = 1, **settings: Any) -> AsyncIterator[Served]:
    (folder / "key").write_bytes(KEY)
    async with contextlib.AsyncExitStack() as stack:
        names = ["prefill", *(f"decode-{i}" for i in range(decodes))]
        workers = []
        for name in names:
            role = name.partition("-")[0]
            made = running(role, folder, model_uri=f"file://{weights}", model_name="m", pod_name=name)
            workers.append(await stack.enter_async_context(made))
            workers[-1].worker.incarnation = f"{name}/boot"
        listed = [{"name": n, "url": str(w.http.base_url)} for n, w in zip(names, workers, strict=True)]
        (folder / "members.json").write_text(json.dumps({"workers": listed}))
        values = {"model_name": "m", "cluster_key_file": folder / "key", "poll_interval_s": 0.1,
                  "membership": f"file://{folder / 'members.json'}"} | settings  # fmt: skip
        router = Router(Settings.model_validate(values))
        sock = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        server = server_of(router)
        tasks = [asyncio.create_task(router.run()), asyncio.create_task(server.serve(sockets=[sock]))]
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        http = await stack.enter_async_context(httpx.AsyncClient(base_url=url, trust_env=False, timeout=60))
        try:
            async with asyncio.timeout(60):
                while router.handshakes.counts() != {"expected": decodes, "healthy": decodes}:
                    await asyncio.sleep(0.02)
            yield Served(http, workers, router)
        finally:
            server.should_exit = True
            await tasks[1]
            tasks[0].cancel()
            await asyncio.gather(tasks[0], return_exceptions=True)
            await router.close()


async def _chat(folder: Path, weights: Path) -> tuple[list[list[int]], list[str]]:
    """Return the prompts of two turns and their answers, from a worker without a prefix cache."""
    prompts, answers = [prompt(900)], list[str]()
    (folder / "key").write_bytes(KEY)
    async with running("both", folder, model_uri=f"file://{weights}", prefix_cache=False) as one:
        for _ in range(2):
            asked = body(prompts[-1], max_new_tokens=NEW, stop_token_ids=[]) | {"mode": "local"}
            answer = [token for _, token in tokens_of(await one.lines("decode", asked))]
            answers.append(TOKENIZER.decode(answer))
            prompts.append([*prompts[-1], *answer, *prompt(40, start=9)])
    return prompts, answers


async def test_the_second_turn_goes_where_the_first_is_and_moves_less_than_a_tenth(
    tmp_path: Path, weights: Path
) -> None:
    (first, turn, _), answers = await _chat(tmp_path, weights)
    async with served(tmp_path, weights, decodes=3, local_prefill_max_tokens=0) as s:
        answer, trace = await s.ask(first)
        assert (trace["path"], trace["reason"]) == ("remote", "shipped")
        assert trace["kv_bytes"] == s.kv_bytes(-(-900 // SIZE) * SIZE)
        second, then = await s.ask(turn)
        assert then["decode"] == trace["decode"]
        assert (then["path"], then["reason"]) == ("remote", "shipped")
        assert 0 < then["kv_bytes"] < 0.1 * s.kv_bytes(len(turn))
        again, repeated = await s.ask(turn)
        assert (again, repeated["kv_bytes"]) == (second, s.kv_bytes(SIZE))
        await s.idle()
        others = await asyncio.gather(*(s.ask(prompt(900, start=i)) for i in (2, 3, 4)))
        assert len({t["decode"]["pod"] for _, t in others}) == 3  # What is new goes where there are seats.
        await s.empty()
    assert [answer, second] == answers


async def test_a_turn_with_little_that_is_new_is_prefilled_by_decode(tmp_path: Path, weights: Path) -> None:
    (first, turn, longer), answers = await _chat(tmp_path, weights)
    async with served(tmp_path, weights, decodes=2) as s:
        answer, trace = await s.ask(first)
        uncached = 'disagg_router_prefilled_tokens_total{part="uncached"}'
        before = await s.counted(uncached)
        second, then = await s.ask(turn)
        assert (then["path"], then["reason"], then["kv_bytes"]) == ("local", "few_tokens_missing", 0)
        assert (then["prefill"], then["decode"]) == (None, trace["decode"])
        assert await s.counted(uncached) == before  # This is no work for prefill workers.
        longer += prompt(200, start=20)
        table = s.router.table
        expected = 64 * (len(first) // 64)  # Prefill has not seen the second turn.
        assert table.uncached_tokens(longer, "", table.catalogue.live()["m"]) == len(longer) - expected
        _, last = await s.ask(longer)
        assert (last["path"], last["reason"], last["decode"]) == ("remote", "shipped", trace["decode"])
        assert 0 < last["kv_bytes"] < 0.25 * s.kv_bytes(len(longer))
        assert await s.counted(uncached) > before
        reasons = 'disagg_router_path_reasons_total{path="%s",reason="%s"}'
        assert await s.counted(reasons % ("local", "few_tokens_missing")) == 1
        assert await s.counted(reasons % ("remote", "shipped")) == 2
        await s.empty()
    assert [answer, second] == answers


async def test_the_choices_of_a_prompt_share_the_kv_that_was_moved_for_the_first(tmp_path: Path, weights: Path) -> None:
    asked = {"model": "m", "prompt": prompt(900), "max_tokens": NEW, "temperature": 1, "seed": 7, "ignore_eos": True}
    blocks = -(-900 // SIZE)
    async with served(tmp_path, weights, decodes=2, local_prefill_max_tokens=0) as s:
        assert s.workers[0].worker.node is not None
        engine = s.workers[0].worker.node.engine
        before = await s.moved()
        answer = await s.http.post("/v1/completions", json=asked | {"n": 3, "stream": True})
        assert answer.status_code == 200, answer.text
        texts = _texts(answer.text)
        await s.idle()
        # Of each further one, the last block, into which its own tokens go.
        assert await s.moved() - before == s.kv_bytes(SIZE) * (blocks + 2)
        assert engine.load().prompt_tokens_total <= 900 + 2 * SIZE
        await s.empty()
        alone = [await s.http.post("/v1/completions", json=asked | {"seed": 7 + i}) for i in range(3)]
        assert texts == [one.json()["choices"][0]["text"] for one in alone]
        assert len(set(texts)) > 1


async def test_a_first_choice_that_ends_at_once_keeps_no_other_waiting(tmp_path: Path, weights: Path) -> None:
    asked = {"model": "m", "prompt": prompt(900), "max_tokens": 1, "temperature": 1, "n": 3}
    async with served(tmp_path, weights) as s:
        answer = await s.http.post("/v1/completions", json=asked)
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["choices"]) == 3
        await s.empty()


def _texts(events: str) -> list[str]:
    texts: dict[int, str] = {}
    for line in events.splitlines():
        if line.startswith("data: {"):
            for choice in json.loads(line[6:])["choices"]:
                texts[choice["index"]] = texts.get(choice["index"], "") + choice["text"]
    return [texts[i] for i in sorted(texts)]
