"""Tests of `first_token_within_s`, from a body to the order of first tokens and to the metrics."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.protocol.client import body, tokens_of
from tests.worker.engine.engines import Turnstile
from tests.worker.server.rig import Running, prompt, running

from disagg_protocol.bodies import Line


def _request(name: str, n: int, within_s: float | None) -> Line:
    start = sum(name.encode())
    return body(prompt(n, start), max_new_tokens=1) | {"request_id": name, "first_token_within_s": within_s}


async def _late(worker: Running) -> float:
    text = (await worker.http.get("/metrics")).text
    return float(
        next(line.split()[1] for line in text.splitlines() if line.startswith("disagg_worker_late_prompts_total "))
    )


@pytest.mark.parametrize("due", [True, False])
@pytest.mark.parametrize(
    ("role", "call", "more"), [("prefill", "prefill", {"ticket": None}), ("both", "decode", {"mode": "local"})]
)
async def test_a_newcomer_that_can_be_on_time_overtakes_a_queue_of_late_ones(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, role: str, call: str, more: Line, due: bool
) -> None:
    turnstile = Turnstile(monkeypatch)
    async with running(role, tiny, max_batch_tokens=512) as worker, asyncio.TaskGroup() as group:

        def send(name: str, n: int, within_s: float) -> asyncio.Task[list[Line]]:
            return group.create_task(worker.lines(call, _request(name, n, within_s if due else None) | more))

        held = send("held", 8, 1000.0)
        assert await asyncio.to_thread(turnstile.reached.wait, 30)
        late = [send(f"late-{i}", 200, -1.0) for i in range(4)]
        await worker.until(lambda load: load.waiting_requests == 4)
        new = send("new", 40, 1000.0)
        await worker.until(lambda load: load.waiting_requests == 5)
        turnstile.let(2)  # One of them is for the request that held the others up.
        first, others = ([new], late) if due else (late[:2], [*late[2:], new])
        assert [len(tokens_of(lines)) for lines in await asyncio.gather(*first)] == [1] * len(first)
        assert worker.load().work_total["prefill_batches"] == 2
        assert not any(t.done() for t in others)
        turnstile.let(1000)
        answers = await asyncio.gather(held, *late, new)
        assert [len(tokens_of(lines)) for lines in answers] == [1] * 6
        assert await _late(worker) == (4.0 if due else 0.0)
        await worker.empty()


async def test_a_first_token_is_due_in_mode_local_only(tiny: Path) -> None:
    async with running("both", tiny) as worker:
        status, error = await worker.refused("decode", _request("r", 8, 1.0) | {"mode": "remote"})
        assert (status, error["code"]) == (400, "invalid_request")
        assert error["message"].startswith("first_token_within_s: ")
        await worker.empty()
