"""Tests of LoRA adapters: listed as models, asked for by name, and never mixed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.token_worker import TokenWorker, expected_text, seed_with
from tests.router.stack import MODEL, Stack, tokens_of

N = 8


def pair(*names: str) -> list[TokenWorker]:
    pool = [TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")]
    for worker in pool:
        give(worker, *names)
    return pool


def give(worker: TokenWorker, *names: str) -> None:
    worker.features, worker.adapters = ["adapter"], list(names)


def text(adapter: str) -> str:
    return expected_text(seed_with(5, adapter), tokens_of("hello"), N)


async def test_adapters_are_listed_with_the_model_that_they_belong_to(tmp_path: Path) -> None:
    async with Stack(tmp_path, *pair("sql", "chat/de", MODEL)) as stack:
        cards = (await stack.http.get("/v1/models")).json()["data"]
        assert [(c["id"], c.get("parent")) for c in cards] == [(MODEL, None), ("chat/de", MODEL), ("sql", MODEL)]
        assert {c["object"] for c in cards} == {"model"}
        assert (await stack.http.get("/v1/models/chat/de")).json() == cards[1]
        assert (await stack.http.get("/v1/models/other")).status_code == 404
        assert [m.id async for m in stack.openai.models.list()] == [MODEL, "chat/de", "sql"]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_the_model_of_a_request_chooses_the_adapter(tmp_path: Path, path: str) -> None:
    pool = pair("sql", "chat")
    content: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}]} if "chat" in path else {"prompt": "hi"}
    async with Stack(tmp_path, *pool) as stack:
        for worker in pool:
            worker.seen.bodies.clear()
        texts: dict[str, str] = {}
        for model in (MODEL, "sql", "chat", MODEL):
            body = content | {"model": model, "max_tokens": N, "seed": 5}
            answer = (await stack.http.post(path, json=body)).json()
            assert answer["model"] == model
            choice = answer["choices"][0]
            texts.setdefault(model, choice["message"]["content"] if "chat" in path else choice["text"])
        assert len(set(texts.values())) == 3
        for worker in pool:
            asked = [b.get("adapter") for b in worker.seen.bodies if not b["request_id"].startswith("handshake-")]
            assert asked == [None, "sql", "chat", None]
        missing = await stack.http.post(path, json=content | {"model": "other"})
        assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
        assert "'sql'" in missing.json()["error"]["message"]


async def test_an_adapter_is_asked_only_of_workers_that_list_it(tmp_path: Path) -> None:
    """An older worker would refuse the field, and one without the adapter cannot serve it."""
    pool = pair("sql")
    others = [TokenWorker("p1", "prefill"), TokenWorker("d1", "decode"), TokenWorker("d2", "decode")]
    give(others[2], "chat")
    async with Stack(tmp_path, *pool, *others) as stack:
        for _ in range(6):
            answer = (await stack.complete(model="sql")).json()
            assert answer["choices"][0]["text"] == text("sql")
            trace = answer["disagg"]
            assert (trace["prefill"]["pod"], trace["decode"]["pod"], trace["attempts"]) == ("p0", "d0", 1)
        answer = (await stack.complete(model="chat")).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["path"]) == (text("chat"), "local")
        used = {(await stack.complete()).json()["disagg"]["prefill"]["pod"] for _ in range(12)}
        assert used == {"p0", "p1"}


async def test_a_failover_stays_with_the_adapter(tmp_path: Path) -> None:
    pool = pair("sql")
    spare = TokenWorker("d1", "decode")
    give(spare, "sql")
    async with Stack(tmp_path, *pool, spare) as stack:
        for worker in (*pool, spare):
            worker.token_interval_s = 0.02
        task = asyncio.create_task(stack.complete(model="sql"))
        await stack.until(lambda: bool(pool[1].running or spare.running))
        await next(w for w in (pool[1], spare) if w.running).stop()
        assert (await task).json()["choices"][0]["text"] == text("sql")


async def test_while_its_workers_are_away_a_request_for_an_adapter_waits(tmp_path: Path) -> None:
    pool = pair("sql")
    async with Stack(tmp_path, *pool) as stack:
        for worker in pool:
            worker.state = "starting"
        await stack.until(lambda: all(w.state == "starting" for w in stack.router.table.workers()))
        task = asyncio.create_task(stack.complete(model="sql"))
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        for worker in pool:
            worker.state = "ready"
        assert (await task).json()["choices"][0]["text"] == text("sql")


async def test_before_any_worker_was_ready_no_name_is_known_to_be_wrong(tmp_path: Path) -> None:
    async with Stack(tmp_path) as stack:
        answer = await stack.complete(model="sql")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "starting")


async def test_prefixes_of_adapters_are_kept_apart(tmp_path: Path) -> None:
    prompt = "x" * 200
    async with Stack(tmp_path, *pair("sql")) as stack:
        await stack.complete(prompt)
        table, tokens = stack.router.table, tokens_of(prompt)
        model, sql = (table.catalogue.live()[name] for name in (MODEL, "sql"))
        assert table.uncached_tokens(tokens, "", model) < 200
        assert table.uncached_tokens(tokens, "", sql) == 200
        await stack.complete(prompt, model="sql")
        assert table.uncached_tokens(tokens, "", sql) < 200
