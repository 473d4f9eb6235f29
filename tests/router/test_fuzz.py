"""Fuzzing of the served API: whatever is sent, the answer is one that the API has."""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fakes.token_worker import TokenWorker
from tests.profiles import examples
from tests.router.fuzz import Case, cases, verdict
from tests.router.real_stack import API_KEY, Real, real
from tests.router.real_stack import MODEL as REAL_MODEL
from tests.router.stack import MODEL, Stack

_AT_ONCE = 8


@pytest.mark.slow
async def test_whatever_is_sent_gets_an_answer_that_the_api_has(tmp_path: Path) -> None:
    """2,000 requests, and ten times as many in the long form."""
    pool = TokenWorker("p0", "prefill"), TokenWorker("d0", "decode")
    for worker in pool:
        worker.end_after = 2
    async with Stack(tmp_path, *pool) as stack:
        loop, seen = asyncio.get_running_loop(), Counter[int]()
        document = (await stack.http.get("/openapi.json")).json()

        async def send(batch: list[Case]) -> list[str]:
            answers = await asyncio.gather(*(stack.http.post(c.path, content=c.body) for c in batch))
            seen.update(a.status_code for a in answers)
            return [verdict(c, a.status_code, a.headers, a.content) for c, a in zip(batch, answers, strict=True)]

        @settings(max_examples=examples(2000 // _AT_ONCE), suppress_health_check=list(HealthCheck), database=None)
        @given(st.lists(cases(document, MODEL), min_size=_AT_ONCE, max_size=_AT_ONCE))
        def check(batch: list[Case]) -> None:
            assert not list(filter(None, asyncio.run_coroutine_threadsafe(send(batch), loop).result(60)))

        await asyncio.to_thread(check)
        print(dict(seen))
        assert seen.total() >= 2000
        # It is no fuzzing if nothing gets through, or everything does.
        assert seen[200] > 100
        assert seen[400] > 300
        assert (await stack.complete()).status_code == 200


def _resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


class Others:
    """Clients that ask for the same again and again, and measure how long it takes."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.seconds: list[float] = []

    async def _ask(self) -> None:
        body = {"model": REAL_MODEL, "prompt": "import os", "max_tokens": 8, "temperature": 0}
        while True:
            began_s = time.perf_counter()
            answer = await self._http.post("/v1/completions", json=body)
            assert answer.status_code == 200, answer.text
            self.seconds.append(time.perf_counter() - began_s)
            await asyncio.sleep(0.02)

    @contextlib.asynccontextmanager
    async def asking(self, clients: int) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self._ask()) for _ in range(clients)]
        try:
            yield
            assert not any(task.done() for task in tasks), [task for task in tasks if task.done()]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def p99_s(self) -> float:
        return statistics.quantiles(self.seconds, n=100)[98]


async def _fuzz(http: httpx.AsyncClient, document: dict[str, object]) -> Counter[int]:
    loop, seen = asyncio.get_running_loop(), Counter[int]()

    async def send(batch: list[Case]) -> list[str]:
        answers = await asyncio.gather(*(http.post(c.path, content=c.body) for c in batch))
        seen.update(a.status_code for a in answers)
        return [verdict(c, a.status_code, a.headers, a.content) for c, a in zip(batch, answers, strict=True)]

    @settings(max_examples=examples(2000 // _AT_ONCE), suppress_health_check=list(HealthCheck), database=None)
    @given(st.lists(cases(document, REAL_MODEL), min_size=_AT_ONCE, max_size=_AT_ONCE))
    def check(batch: list[Case]) -> None:
        assert not list(filter(None, asyncio.run_coroutine_threadsafe(send(batch), loop).result(120)))

    await asyncio.to_thread(check)
    return seen


@pytest.mark.long
@pytest.mark.timeout(3600, func_only=True)
async def test_real_processes_are_none_the_worse_for_it(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    """The baseline of the other clients is taken beside as many ordinary requests."""
    with real(tmp_path) as stack:
        headers = {"authorization": f"Bearer {API_KEY}"}
        limits = httpx.Limits(max_connections=100)
        async with httpx.AsyncClient(
            base_url=stack.split, headers=headers, trust_env=False, timeout=120, limits=limits
        ) as http:
            await _compare(stack, http, record_property)


async def _compare(stack: Real, http: httpx.AsyncClient, record_property: Callable[[str, object], None]) -> None:
    document = (await http.get("/openapi.json")).json()
    before, beside = Others(http), Others(http)
    async with before.asking(2), Others(http).asking(_AT_ONCE):
        while len(before.seconds) < 300:
            await asyncio.sleep(0.1)
    memory = {name: _resident_mib(pid) for name, pid in stack.pids.items()}
    async with beside.asking(2):
        seen = await _fuzz(http, document)
    grown = {name: _resident_mib(pid) - memory[name] for name, pid in stack.pids.items()}
    found = {
        "requests": str(dict(seen)),
        "p99 of others before and beside, ms": f"{before.p99_s() * 1e3:.0f}, {beside.p99_s() * 1e3:.0f}",
        "growth in MiB": ", ".join(f"{name} {mib:.0f}" for name, mib in grown.items()),
    }
    for name, value in found.items():
        record_property(name, value)
    assert seen[200] > 100
    assert beside.p99_s() <= 2 * before.p99_s(), found
    assert max(grown.values()) <= 100, found
