"""Engines die, freeze and leave, and requests are cancelled: no stream is lost, no text is wrong,
and no block stays behind.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import pytest
from benchmarks.engine.vllm_process import LEASE_S
from tests.engines.served import Answer, Served, prompts, served

from disagg_wire.roles import DECODE, PREFILL

pytestmark = [pytest.mark.engines, pytest.mark.timeout(1200)]
NEW_TOKENS = 200


async def _alone(stack: Served, asked: list[list[int]], tokens: int = NEW_TOKENS) -> list[Answer]:
    """Ask one after the other: these are the answers to compare with."""
    answers = [await stack.ask(prompt, tokens) for prompt in asked]
    assert [a.error for a in answers] == [None] * len(asked)
    return answers


def _kill(stack: Served, name: str) -> None:
    stack.engines[name].signal_all(signal.SIGKILL)


async def test_streams_go_on_elsewhere_when_decode_or_prefill_is_killed(tmp_path: Path) -> None:
    async with served(tmp_path, PREFILL, PREFILL, DECODE, DECODE) as stack:
        asked = prompts(6, longest=600, seed=3)
        wanted = await _alone(stack, asked)
        victim = wanted[0].trace["decode"]["pod"]
        answers = await asyncio.gather(
            stack.ask(asked[0], NEW_TOKENS, at=(20, lambda: _kill(stack, victim))),
            *(stack.ask(prompt, NEW_TOKENS) for prompt in asked[1:]),
        )
        assert [a.error for a in answers] == [None] * len(asked)
        assert [a.tokens for a in answers] == [a.tokens for a in wanted]
        # Prefill dies while prompts are being computed and handed over.
        load = [asyncio.create_task(stack.ask(prompt, 40)) for prompt in asked * 3]
        await asyncio.sleep(0.3)
        _kill(stack, "p0")
        answers = await asyncio.gather(*load)
        assert [a.error for a in answers] == [None] * len(load)
        assert [a.tokens for a in answers] == [w.tokens[:40] for w in wanted * 3]


async def test_a_frozen_prefill_engine_neither_hangs_a_request_nor_changes_its_text(tmp_path: Path) -> None:
    async with served(tmp_path, PREFILL, DECODE) as stack:
        asked = prompts(4, longest=400, seed=5)
        wanted = await _alone(stack, asked, 60)
        running = [asyncio.create_task(stack.ask(prompt, 60)) for prompt in asked]
        await asyncio.sleep(0.05)
        stack.engines["p0"].signal_all(signal.SIGSTOP)
        started_s = time.monotonic()
        answers = await asyncio.gather(*running, *(stack.ask(prompt, 60) for prompt in asked))
        assert time.monotonic() - started_s < 60
        assert [a.error for a in answers] == [None] * 8
        assert [a.tokens for a in answers] == [w.tokens for w in wanted * 2]
        stack.engines["p0"].signal_all(signal.SIGCONT)
        await stack.until_paired(1)
        again = await stack.ask(asked[0], 60)
        assert (again.tokens, again.trace["path"]) == (wanted[0].tokens, "remote")
        await stack.until_idle(LEASE_S + 15)


async def test_after_500_requests_of_which_100_were_cancelled_every_block_is_free(tmp_path: Path) -> None:
    async with served(tmp_path, PREFILL, DECODE) as stack:
        asked = prompts(25, longest=600, seed=11)
        wanted = {i: (await stack.ask(prompt, 16)).tokens for i, prompt in enumerate(asked)}
        rng, slots = random.Random(1), asyncio.Semaphore(12)
        failed: list[str] = []

        async def one(number: int) -> None:
            which = number % len(asked)
            async with slots:
                task = asyncio.create_task(stack.ask(asked[which], 16))
                if number % 5 == 0:
                    # From before the ticket to the middle of the stream.
                    await asyncio.wait({task}, timeout=0.25 * rng.random() ** 2)
                    task.cancel()
                    await asyncio.wait({task})
                    return
                answer = await task
                if answer.error is not None:
                    failed.append(answer.error)
                elif answer.tokens != wanted[which]:
                    failed.append(f"prompt {which}: other text")

        await asyncio.gather(*(one(n) for n in range(500)))
        assert failed == []
        await stack.until_idle(LEASE_S + 5)
        for engine in stack.engines.values():
            assert engine.process.returncode is None
        answer = await stack.ask(asked[3], 16)
        assert (answer.tokens, answer.trace["path"]) == (wanted[3], "remote")
        assert (await stack.info("d0"))["load"]["room"]["free_seats"] == 16


async def test_a_hung_engine_is_found_by_a_token_within_its_limits(tmp_path: Path) -> None:
    """Its processes and /health answer, its work waits, and its counters stand still."""
    async with served(tmp_path, PREFILL, DECODE, DECODE, probe_after_s=4, probe_timeout_s=4) as stack:
        (prompt,) = prompts(2, longest=300, seed=19)[1:]
        wanted = await stack.ask(prompt, 600)
        under_way = asyncio.Event()
        task = asyncio.create_task(stack.ask(prompt, 600, at=(20, under_way.set)))
        await under_way.wait()
        names = ("d0", "d1")
        running = [(await stack.engines[name].metric("vllm:num_requests_running")) for name in names]
        hung = names[running.index(max(running))]
        for pid, command in stack.engines[hung].living().items():
            if "EngineCore" in command or "Worker" in command:
                os.kill(pid, signal.SIGSTOP)
        async with asyncio.timeout(30):
            while (await stack.http.get(f"{stack.adapter_urls[hung]}/healthz")).status_code != 503:
                await asyncio.sleep(0.1)
        assert (await stack.engines[hung].http.get("/health")).status_code == 200
        assert (await stack.http.get(f"{stack.adapter_urls[hung]}/readyz")).status_code == 503
        answer = await task
        assert (answer.error, answer.tokens) == (None, wanted.tokens)
        assert answer.trace["decode"]["pod"] != hung


async def test_a_prefill_worker_that_is_told_to_go_gives_no_error(tmp_path: Path) -> None:
    async with served(tmp_path, PREFILL, PREFILL, DECODE) as stack:
        asked = prompts(20, longest=600, seed=13)
        load = [asyncio.create_task(stack.ask(prompt, 24)) for prompt in asked * 2]
        await asyncio.sleep(0.2)
        stack.adapters["p0"].terminate()
        answers = await asyncio.gather(*load)
        assert [a.error for a in answers] == [None] * len(load)
        assert [a.tokens for a in answers[:20]] == [a.tokens for a in answers[20:]]
        assert await asyncio.to_thread(stack.adapters["p0"].wait, 30) == 0
        await stack.until_idle(LEASE_S + 5)
