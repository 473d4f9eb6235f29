"""Tests that the client gets the same text whatever dies, without gap or repeat."""

from __future__ import annotations

import asyncio
from pathlib import Path

import openai
import pytest
from tests.fakes.token_worker import Fault, TokenWorker, expected_text
from tests.router.stack import MODEL, Stack, tokens_of

# Each test starts a whole stack on real sockets, which takes a second.
pytestmark = pytest.mark.slow

PROMPT = tokens_of("hello")
N = 40
WANTED = expected_text(5, PROMPT, N)


def workers(prefills: int = 2, decodes: int = 2) -> list[TokenWorker]:
    return [TokenWorker(f"p{i}", "prefill") for i in range(prefills)] + [
        TokenWorker(f"d{i}", "decode") for i in range(decodes)
    ]


def inject(pool: list[TokenWorker], leg: str, **fault: object) -> None:
    """Make the next call of this leg fail, on whichever worker it comes first.

    The workers share one Fault, so the others stay sound.
    """
    shared = Fault(leg, **fault)  # type: ignore[arg-type]
    for worker in pool:
        worker.faults.append(shared)


FAULTS = [
    ("decode", {"kind": "status", "status": 500}, "internal"),
    ("decode", {"kind": "die", "after_tokens": 0}, "worker_lost"),
    ("decode", {"kind": "die", "after_tokens": 1}, "worker_lost"),
    ("decode", {"kind": "die", "after_tokens": 25}, "worker_lost"),
    ("decode", {"kind": "silent_end", "after_tokens": 7}, "worker_lost"),
    ("decode", {"kind": "garbage", "after_tokens": 7}, "protocol"),
    ("decode", {"kind": "error", "after_tokens": 7}, "internal"),
    ("decode", {"kind": "error", "after_tokens": 7, "code": "cancelled"}, "cancelled"),
    ("decode", {"kind": "error", "after_tokens": 7, "code": "draining"}, "draining"),
    ("decode", {"kind": "stall", "after_tokens": 7}, "stalled"),
    ("prefill", {"kind": "status", "status": 500}, "internal"),
    ("prefill", {"kind": "status", "status": 400, "code": "ticket_refused"}, "ticket_refused"),
    ("prefill", {"kind": "die", "after_tokens": 0}, "worker_lost"),
    ("prefill", {"kind": "stall", "after_tokens": 0}, "stalled"),
    ("prefill", {"kind": "error", "after_tokens": 0}, "internal"),
    ("prefill", {"kind": "garbage", "after_tokens": 0}, "protocol"),
    ("prefill", {"kind": "no_transfer"}, "transfer_failed"),
]


@pytest.mark.parametrize(("leg", "fault", "reason"), FAULTS)
async def test_a_fault_changes_nothing_for_the_client(
    tmp_path: Path, leg: str, fault: dict[str, object], reason: str
) -> None:
    pool = workers()
    patience_s = 1.0 if reason == "stalled" else 15.0
    async with Stack(tmp_path, *pool, stall_timeout_s=patience_s, first_token_timeout_s=patience_s) as stack:
        inject(pool, leg, **fault)
        answer = (await stack.complete(max_tokens=N)).json()
        assert answer["choices"][0]["text"] == WANTED
        assert answer["usage"]["completion_tokens"] == N
        assert await stack.metric(f'disagg_router_failovers_total{{reason="{reason}"}}') == 1
        assert answer["disagg"]["attempts"] == (1 if reason == "draining" else 2)


async def test_a_prefill_worker_that_is_lost_after_its_part_is_not_missed(tmp_path: Path) -> None:
    pool = workers()
    async with Stack(tmp_path, *pool) as stack:
        inject(pool, "prefill", kind="die", after_tokens=1)
        for worker in pool:
            worker.token_interval_s = 0.005
        answer = (await stack.complete(max_tokens=N)).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["attempts"]) == (WANTED, 1)


async def test_the_second_attempt_prefills_the_emitted_tokens_too_with_the_same_seed(tmp_path: Path) -> None:
    pool = workers()
    async with Stack(tmp_path, *pool) as stack:
        for worker in pool:
            worker.seen.bodies.clear()
            # Prefill's first token comes before decode's ninth, whatever else the machine does.
            worker.token_interval_s = 0.02
        inject(pool, "decode", kind="die", after_tokens=9)
        await stack.complete(max_tokens=N)
        # A handshake has 4 tokens.
        decodes = [b for w in pool for b in w.seen.bodies if w.role == "decode" and len(b["tokens"]) > 4]
        first, second = sorted(decodes, key=lambda b: b["epoch"])
        assert second["epoch"] == first["epoch"] + 1
        assert (first["tokens"], first["prompt_tokens"], second["prompt_tokens"]) == (PROMPT, 5, 5)
        emitted = bytes(t - 3 for t in second["tokens"][5:]).decode()
        assert len(emitted) >= 9
        assert WANTED.startswith(emitted)
        assert second["sampling"] == first["sampling"]


async def test_a_stream_goes_on_after_its_decode_worker_died(tmp_path: Path) -> None:
    pool = workers()
    async with Stack(tmp_path, *pool) as stack:
        for worker in pool:
            worker.token_interval_s = 0.01
        stream = await stack.openai.completions.create(model=MODEL, prompt="hello", max_tokens=N, seed=5, stream=True)
        text, killed = "", False
        async for chunk in stream:
            text += chunk.choices[0].text
            if len(text) >= 10 and not killed:
                killed = True
                await next(w for w in pool if w.role == "decode" and w.running).stop()
        assert text == WANTED


async def test_many_streams_survive_the_death_of_half_the_workers(tmp_path: Path) -> None:
    pool = workers()
    async with Stack(tmp_path, *pool) as stack:
        for worker in pool:
            worker.token_interval_s = 0.01

        async def one(seed: int) -> bool:
            answer = (await stack.complete(max_tokens=N, seed=seed)).json()
            return bool(answer["choices"][0]["text"] == expected_text(seed, PROMPT, N))

        tasks = [asyncio.create_task(one(seed)) for seed in range(16)]
        await stack.until(lambda: sum(w.running for w in pool if w.role == "decode") >= 8)
        await asyncio.gather(pool[0].stop(), pool[2].stop())
        assert all(await asyncio.gather(*tasks))


@pytest.mark.parametrize("state", ["ready", "draining"])
async def test_an_answer_from_before_a_worker_was_lost_does_not_bring_it_back(tmp_path: Path, state: str) -> None:
    pool = workers()
    async with Stack(tmp_path, *pool) as stack:
        worker, table = pool[0], stack.router.table
        worker.state, worker.last_resort = state, state == "draining"

        async def asked_again() -> None:
            times = len(worker.asked_by)
            await stack.until(lambda: len(worker.asked_by) > times)

        def is_listed() -> bool:
            return any(w.incarnation == worker.incarnation for w in table.workers())

        await asked_again()
        worker.tells.clear()
        await asked_again()
        table.lost(worker.incarnation)
        assert not is_listed()
        worker.tells.set()
        await asyncio.sleep(0)
        worker.tells.clear()
        await asked_again()
        assert not is_listed()
        worker.tells.set()
        await stack.until(is_listed)


async def test_the_only_decode_worker_may_come_back_as_another_incarnation(tmp_path: Path) -> None:
    prefill, decode = workers(1, 1)
    async with Stack(tmp_path, prefill, decode) as stack:
        decode.token_interval_s = 0.01
        task = asyncio.create_task(stack.complete(max_tokens=N))
        await stack.until(lambda: decode.running == 1)
        await decode.stop()
        await stack.until(lambda: stack.router.queue.waiting("decode") == 1)
        again = TokenWorker("d0", "decode")
        stack.workers.append(again)
        await again.start()
        stack.publish(prefill, again)
        assert (await task).json()["choices"][0]["text"] == WANTED


async def test_a_pair_that_can_not_transfer_is_avoided_and_decode_prefills_itself(tmp_path: Path) -> None:
    prefill, decode = workers(1, 1)
    async with Stack(tmp_path, prefill, decode) as stack:
        stack.router.table.breaker.first_s = 5.0
        prefill.faults = [Fault("prefill", "no_transfer", times=1000)]
        answer = (await stack.complete(max_tokens=N)).json()
        assert (answer["choices"][0]["text"], answer["disagg"]["path"], answer["disagg"]["attempts"]) == (
            WANTED,
            "local",
            2,
        )
        again = (await stack.complete(max_tokens=N)).json()
        assert (again["disagg"]["path"], again["disagg"]["attempts"]) == ("local", 1)
        await stack.until(lambda: stack.healthy() == 0)
        assert (await stack.state())["pairs"] == {"expected": 1, "healthy": 0}


async def test_the_attempts_are_bounded(tmp_path: Path) -> None:
    pool = workers(1, 6)
    async with Stack(tmp_path, *pool, max_attempts=3) as stack:
        for worker in pool:
            worker.faults = [Fault("decode", "status", status=500, times=1000)]
        answer = await stack.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "workers_failed")
        assert answer.headers["retry-after"] == "1"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("leg", "status", "code"),
    [
        ("decode", 400, "invalid_request"),
        ("decode", 413, "prompt_too_long"),
        ("prefill", 400, "invalid_request"),  # with a ticket: decode has taken the request
    ],
)
async def test_what_no_worker_would_take_is_not_tried_again(
    tmp_path: Path, leg: str, status: int, code: str, stream: bool
) -> None:
    pool = workers()
    async with Stack(tmp_path, *pool) as stack:
        inject(pool, leg, kind="status", status=status, code=code)
        answer = await stack.complete(stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"]) == (400, "invalid_request_error")
        assert f"{code}, as told" in error["message"]
        assert await stack.metric(f'disagg_router_failovers_total{{reason="{code}"}}') == 0
        await stack.until(lambda: not any(w.running for w in pool))  # decode's reservation is given back
        assert (await stack.complete()).status_code == 200


async def test_an_error_after_the_stream_began_is_its_last_event(tmp_path: Path) -> None:
    pool = workers(1, 1)
    async with Stack(tmp_path, *pool, max_attempts=1) as stack:
        for worker in pool:
            worker.token_interval_s = 0.02  # the first token is out before decode dies
        inject(pool, "decode", kind="die", after_tokens=5)
        async with stack.http.stream(
            "POST", "/v1/completions", json={"model": MODEL, "prompt": "hello", "stream": True}
        ) as answer:
            assert answer.status_code == 200
            lines = [line async for line in answer.aiter_lines() if line]
        assert '"error"' in lines[-1]
        assert "[DONE]" not in lines[-1]
        inject(pool, "decode", kind="die", after_tokens=5)
        await stack.until(lambda: len(stack.router.table.workers()) == 2)
        with pytest.raises(openai.APIError, match="worker_lost"):
            async for _ in await stack.openai.completions.create(model=MODEL, prompt="hello", stream=True):
                pass


async def test_a_request_ends_at_its_deadline(tmp_path: Path) -> None:
    pool = workers(1, 1)
    async with Stack(tmp_path, *pool, request_timeout_s=0.4) as stack:
        pool[1].hold.clear()
        answer = await stack.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "deadline_exceeded")
        await stack.until(lambda: pool[1].running == 0)


async def test_a_worker_of_another_model_never_gets_the_tokens(tmp_path: Path) -> None:
    """During a rollout to another model, workers of both models exist.

    A request stays with the model that it was tokenized for.
    """
    old, new = workers(1, 2), [TokenWorker("pn", "prefill", digest="model-b", compat="compat-b")]
    async with Stack(tmp_path, *old, *new) as stack:
        inject(old, "decode", kind="die", after_tokens=3)
        new[0].seen.bodies.clear()
        assert (await stack.complete(max_tokens=N)).json()["choices"][0]["text"] == WANTED
        assert new[0].seen.bodies == []
