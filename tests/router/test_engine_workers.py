"""Tests of workers behind an adapter: prefill sends no token, and decode may be unable to prefill.

The client gets the same text whatever dies; where a promise is weaker, this is said.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from tests.fakes.token_worker import Fault, TokenWorker, expected_text
from tests.router.stack import MODEL, Stack, tokens_of

from disagg_router.workers.pair_choice import pair_key

pytestmark = pytest.mark.slow

PROMPT = tokens_of("hello")
N = 40
WANTED = expected_text(5, PROMPT, N)
FEATURES = ["first_token_from_decode", "soft_ticket"]


def engines(prefills: int = 1, decodes: int = 1, *features: str) -> list[TokenWorker]:
    pool = [TokenWorker(f"p{i}", "prefill") for i in range(prefills)]
    pool += [TokenWorker(f"d{i}", "decode") for i in range(decodes)]
    for worker in pool:
        worker.features = [*FEATURES, *features]
    return pool


async def streamed(stack: Stack, *, begun: asyncio.Event | None = None, **fields: Any) -> list[dict[str, Any]]:
    """Return all events of a stream but the last "[DONE]"; `begun` is set after the fifth."""
    body = {"model": MODEL, "prompt": "hello", "max_tokens": N, "seed": 5, "stream": True} | fields
    async with stack.http.stream("POST", "/v1/completions", json=body, headers={"x-disagg-trace": "1"}) as answer:
        assert answer.status_code == 200, await answer.aread()
        lines: list[str] = []
        async for line in answer.aiter_lines():
            lines += [line.removeprefix("data: ")] if line else []
            if begun is not None and len(lines) >= 5:
                begun.set()
    return [json.loads(line) for line in lines if line != "[DONE]"]


async def test_a_token_of_prefill_is_never_taken_for_decodes(tmp_path: Path) -> None:
    pool = engines()
    async with Stack(tmp_path, *pool) as stack:
        pool[0].leaks_first = True
        answer = (await stack.complete(max_tokens=N)).json()
        assert answer["choices"][0]["text"] == WANTED
        assert (answer["disagg"]["path"], answer["disagg"]["attempts"]) == ("local", 2)


async def test_every_token_comes_from_decode_even_a_single_one(tmp_path: Path) -> None:
    pool = engines()
    async with Stack(tmp_path, *pool) as stack:
        for n in (N, 1):
            answer = (await stack.complete(max_tokens=n)).json()
            assert answer["choices"][0]["text"] == expected_text(5, PROMPT, n)
            trace = answer["disagg"]
            assert (trace["prefill"]["pod"], trace["decode"]["pod"]) == ("p0", "d0")
            assert (trace["path"], trace["attempts"]) == ("remote", 1)


@pytest.mark.parametrize("decodes", [1, 2])
async def test_decode_dies_in_the_middle_of_a_stream(tmp_path: Path, decodes: int) -> None:
    """Without a second worker the router holds the request, and says so, until one is back."""
    pool = engines(1, decodes)
    async with Stack(tmp_path, *pool) as stack:
        for worker in pool:
            worker.token_interval_s = 0.01
        task = asyncio.create_task(streamed(stack, begun=(begun := asyncio.Event())))
        await begun.wait()
        dead = next(w for w in pool if w.role == "decode" and w.running)
        pool[0].seen.bodies.clear()
        await dead.stop()
        if decodes == 1:
            await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
            assert (await stack.state())["waiting"] == {"prefill": 0, "decode": 1}
            assert [b for b in pool[0].seen.bodies if len(b["tokens"]) > 4] == []
            again = engines(0)[0]
            stack.workers.append(again)
            await again.start()
            stack.publish(pool[0], again)
        *events, last = await task
        assert "".join(c["text"] for e in events for c in e["choices"]) == WANTED
        # It may be asked once more: an answer to a poll may be older than its death.
        assert (last["disagg"]["path"], last["disagg"]["attempts"] in (2, 3)) == ("remote", True)
        resumed = next(b for b in pool[0].seen.bodies if len(b["tokens"]) > 4)
        assert resumed["tokens"][:5] == PROMPT
        assert (resumed["prompt_tokens"], resumed["epoch"] >= 1) == (5, True)


@pytest.mark.parametrize(("prefills", "path"), [(1, "local"), (2, "remote")])
async def test_prefill_dies_before_it_has_handed_over(tmp_path: Path, prefills: int, path: str) -> None:
    pool = engines(prefills)
    async with Stack(tmp_path, *pool) as stack:
        stack.router.table.breaker.first_s = 30.0
        shared = Fault("prefill", "die_early")
        for worker in pool:
            worker.faults.append(shared)
        answer = (await stack.complete(max_tokens=N)).json()
        assert answer["choices"][0]["text"] == WANTED
        assert (answer["disagg"]["path"], answer["disagg"]["attempts"]) == (path, 2)
        assert await stack.metric('disagg_router_failovers_total{reason="worker_lost"}') == 1
        assert not stack.router.table.breaker.is_open(pool[-1].incarnation, time.monotonic())


@pytest.mark.parametrize("reads", [True, False])
async def test_prefill_dies_after_it_has_handed_over(tmp_path: Path, reads: bool) -> None:
    """If decode can read the KV nevertheless, nothing has happened."""
    prefill, decode = engines()
    async with Stack(tmp_path, prefill, decode) as stack:
        before = len(prefill.seen.bodies)
        decode.reads.clear()
        decode.faults += [] if reads else [Fault("decode", "no_read")]
        task = asyncio.create_task(stack.complete(max_tokens=N))
        await stack.until(lambda: len(prefill.seen.bodies) > before and prefill.running == 0)
        await prefill.stop()
        decode.reads.set()
        answer = (await task).json()
        assert answer["choices"][0]["text"] == WANTED
        wanted = ("remote", 1) if reads else ("local", 2)
        assert (answer["disagg"]["path"], answer["disagg"]["attempts"]) == wanted
        assert await stack.metric('disagg_router_failovers_total{reason="transfer_failed"}') == (0 if reads else 1)


@pytest.mark.parametrize("kind", ["die", "error", "silent_end"])
async def test_prefills_stream_breaks_off_after_its_last_event_that_matters(tmp_path: Path, kind: str) -> None:
    """The hand-over has been reported; only `end` is missing."""

    class Breaking(TokenWorker):
        broken = False

        async def _prefill_lines(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
            async for line in super()._prefill_lines(body):
                if self.broken and line["type"] == "end":
                    if kind == "error":
                        yield {"type": "error", "code": "internal", "message": "as told", "retryable": True}
                        return
                    raise RuntimeError("as told")
                yield line

    prefill, decode = Breaking("p0", "prefill"), engines(0)[0]
    prefill.features = decode.features
    async with Stack(tmp_path, prefill, decode) as stack:
        prefill.broken, before = True, len(prefill.seen.bodies)
        decode.reads.clear()
        task = asyncio.create_task(stack.complete(max_tokens=N))
        await stack.until(lambda: len(prefill.seen.bodies) > before and prefill.running == 0)
        decode.reads.set()
        answer = (await task).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["attempts"]) == (WANTED, 1)


async def test_a_pair_that_hangs_between_hand_over_and_first_token_is_avoided_and_neither_worker(
    tmp_path: Path,
) -> None:
    prefill, decode = engines()
    async with Stack(tmp_path, prefill, decode, first_token_timeout_s=1.0) as stack:
        table = stack.router.table
        table.breaker.first_s = 30.0
        decode.reads.clear()
        answer = (await stack.complete(max_tokens=N)).json()
        assert answer["choices"][0]["text"] == WANTED
        assert (answer["disagg"]["path"], answer["disagg"]["attempts"]) == ("local", 2)
        p, d = sorted(table.workers(), key=lambda w: w.role, reverse=True)
        now_s = time.monotonic()
        assert [table.breaker.is_open(k, now_s) for k in (pair_key(p, d), p.incarnation, d.incarnation)] == [
            True,
            False,
            False,
        ]
        decode.reads.set()


async def test_prefill_that_ends_without_a_hand_over_is_found_at_once(tmp_path: Path) -> None:
    class Silent(TokenWorker):
        silent = False

        async def _prefill_lines(self, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any]]:
            if self.silent:
                yield {"type": "end", "finish_reason": "prefilled"}
                return
            async for line in super()._prefill_lines(body):
                yield line

    prefill, decode = Silent("p0", "prefill"), engines(0)[0]
    prefill.features = decode.features
    async with Stack(tmp_path, prefill, decode) as stack:
        stack.router.table.breaker.first_s = 30.0
        prefill.silent = True
        answer = (await stack.complete(max_tokens=N)).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["path"]) == (WANTED, "local")
        assert await stack.metric('disagg_router_failovers_total{reason="protocol"}') == 1
        assert stack.router.table.breaker.is_open(prefill.incarnation, time.monotonic())


async def test_a_soft_ticket_that_turns_out_to_be_worth_nothing_sends_the_request_elsewhere(tmp_path: Path) -> None:
    pool = engines(1, 2)
    async with Stack(tmp_path, *pool) as stack:
        shared = Fault("decode", "error", code="no_capacity")
        for worker in pool:
            worker.faults.append(shared)
        answer = (await stack.complete(max_tokens=N)).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["attempts"]) == (WANTED, 1)
        assert await stack.metric('disagg_router_failovers_total{reason="no_capacity"}') == 1


async def test_decode_that_cannot_prefill_waits_for_a_prefill_worker(tmp_path: Path) -> None:
    prefill, decode = engines(1, 1, "no_local_prefill")
    async with Stack(tmp_path, prefill, decode) as stack:
        await prefill.stop()
        await stack.until(lambda: len(stack.router.table.workers()) == 1)
        task = asyncio.create_task(stack.complete(max_tokens=N))
        await stack.until(lambda: stack.router.queue.waiting("prefill") == 1)
        assert (await stack.state())["waiting"] == {"prefill": 1, "decode": 0}
        again = engines(1, 0, "no_local_prefill")[0]
        stack.workers.append(again)
        await again.start()
        stack.publish(again, decode)
        answer = (await task).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["path"]) == (WANTED, "remote")


@pytest.mark.parametrize(
    ("fields", "weakened"),
    [
        ({"temperature": 0.7}, ["seed"]),
        ({"temperature": 0.7, "presence_penalty": 0.5}, ["penalty", "seed"]),
        ({"temperature": 0, "frequency_penalty": 0.5}, ["penalty"]),
        ({"temperature": 0}, []),
        ({"temperature": 0.7, "seed": None}, []),
    ],
)
async def test_a_promise_that_a_failover_weakens_is_counted_once_a_request_and_reported(
    tmp_path: Path, fields: dict[str, Any], weakened: list[str]
) -> None:
    pool = engines(1, 2, "seed_lost_by_failover", "structured_not_resumed")
    async with Stack(tmp_path, *pool) as stack:
        assert (await stack.complete(max_tokens=N, **fields)).json()["disagg"]["weakened"] == []
        for what in ("seed", "penalty"):
            assert await stack.metric(f'disagg_router_weakened_total{{what="{what}"}}') == 0
        shared = Fault("decode", "die", after_tokens=3, times=2)
        for worker in pool:
            worker.faults.append(shared)
        answer = (await stack.complete(max_tokens=N, **fields)).json()
        assert answer["disagg"]["attempts"] == 3
        assert answer["disagg"]["weakened"] == weakened
        for what in ("seed", "penalty"):
            assert await stack.metric(f'disagg_router_weakened_total{{what="{what}"}}') == (what in weakened)


FORMAT: dict[str, Any] = {"structured_outputs": {"regex": "[a-z]+"}}


async def test_a_format_that_has_begun_goes_on_where_a_worker_can_resume_it(tmp_path: Path) -> None:
    pool = engines(1, 3, "structured_not_resumed")
    pool[3].features = FEATURES
    async with Stack(tmp_path, *pool) as stack:
        shared = Fault("decode", "die", after_tokens=3)
        pool[1].faults.append(shared)
        pool[2].faults.append(shared)
        pool[3].slots = 0
        task = asyncio.create_task(stack.complete(max_tokens=N, **FORMAT))
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)  # one that could is there, but full
        pool[3].slots = 64
        answer = (await task).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["decode"]["pod"]) == (WANTED, "d2")


@pytest.mark.parametrize("decodes", [1, 2])
async def test_a_format_that_no_worker_can_resume_ends_with_a_clear_error(tmp_path: Path, decodes: int) -> None:
    pool = engines(1, decodes, "structured_not_resumed")
    async with Stack(tmp_path, *pool) as stack:
        for fault in ("status", "die"):  # before a token is out, and after it
            shared = Fault("decode", fault, after_tokens=3)
            for worker in pool:
                worker.faults.append(shared)
                worker.token_interval_s = 0.02
            if fault == "status":
                assert (await stack.complete(max_tokens=N, **FORMAT)).json()["choices"][0]["text"] == WANTED
                continue
            *events, last = await streamed(stack, **FORMAT)
            text = "".join(c["text"] for e in events for c in e["choices"])
            assert WANTED.startswith(text)
            assert len(text) == 3
            assert last["error"]["code"] == "not_resumable"
            assert "after 3 tokens" in last["error"]["message"]


async def test_the_state_and_the_metrics_tell_what_moves_the_kv_of_each_pair(tmp_path: Path) -> None:
    pool = engines(2, 1, "experimental_transfer")
    first, second, decode = pool
    for worker in pool:
        worker.transport, worker.evidence = "rdma", "Proved"
    second.transport = "tcp"
    async with Stack(tmp_path, *pool) as stack:
        state = await stack.state()
        assert sorted(state["links"], key=lambda link: str(link["prefill"])) == [
            {"prefill": "p0", "decode": "d0", "transport": "rdma", "evidence": "Proved"},
            {"prefill": "p1", "decode": "d0", "transport": "tcp", "evidence": "Proved"},
        ]
        listed = next(w for w in state["workers"] if w["name"] == "p1")
        assert (listed["transport"], listed["evidence"]) == ("tcp", "Proved")
        assert listed["features"] == sorted([*FEATURES, "experimental_transfer"])
        for transport in ("rdma", "tcp"):
            line = f'disagg_router_pair_transports{{evidence="Proved",transport="{transport}"}}'
            assert await stack.metric(line) == 1
        # What a transfer shows counts more than what was declared.
        decode.reports = first.reports = {"transport": "tcp"}
        await second.stop()
        trace = (await stack.complete()).json()["disagg"]
        assert (trace["transport"], trace["evidence"]) == ("tcp", "Configured")
        await stack.until(lambda: stack.healthy() == 1)
        assert (await stack.state())["links"] == [
            {"prefill": "p0", "decode": "d0", "transport": "tcp", "evidence": "Configured"}
        ]
        assert await stack.metric('disagg_router_pair_transports{evidence="Configured",transport="tcp"}') == 1


async def test_an_engine_that_does_not_count_the_bytes_of_a_transfer_says_so(tmp_path: Path) -> None:
    pool = engines()
    for worker in pool:
        worker.reports = {"kv_bytes": None, "transfer_s": None, "exposed_s": None}
    async with Stack(tmp_path, *pool) as stack:  # which waits for the handshake
        trace = (await stack.complete()).json()["disagg"]
        assert (trace["path"], trace["kv_bytes"], trace["transfer_s"]) == ("remote", None, None)
