"""Tests of a cancellation at every step of every kind of job: nothing is held, lost or left."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
from tests.adapter.rig import PROMPT, body, make_adapter
from tests.fakes.adapter_engine import PARAMETERS, FakeEngine, Gate

from disagg_adapter.engines.contract import Delta, EngineFault, HandOver, Work
from disagg_adapter.server.adapter import Adapter
from disagg_adapter.server.handover_message import HandOverMessage
from disagg_protocol.bodies import DecodeRequest, PrefillRequest
from disagg_protocol.event_stream import NdjsonResponse
from disagg_protocol.requests import ELSEWHERE, Job
from disagg_protocol.ticket import Ticket, sign, token_hash, verify
from disagg_wire import codes

KEY = b"k" * 32
# More steps of the event loop than the longest of the jobs takes.
_STEPS = 45


async def _steps(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


class SteppingGate(Gate):
    """A gate at which the engine gives the event loop a few turns."""

    async def enter(self) -> None:
        await _steps(2)


class SteppingEngine(FakeEngine):
    """An engine that gives the event loop turns wherever it can, and while it is closed."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.prefill_gate, self.read_gate, self.token_gate = SteppingGate(), SteppingGate(), SteppingGate()
        self.begun: list[str] = []
        self.closed: list[str] = []

    async def _counted(self, name: str, pieces: AsyncGenerator[Any]) -> AsyncGenerator[Any]:
        self.begun.append(name)
        try:
            async for piece in pieces:
                yield piece
        finally:
            await pieces.aclose()
            try:
                await _steps(8)
            finally:
                self.closed.append(name)

    def generate(self, work: Work) -> AsyncGenerator[Delta]:
        return self._counted("generate", super().generate(work))

    def decode(self, work: Work, handover: HandOver) -> AsyncGenerator[Delta]:
        return self._counted("decode", super().decode(work, handover))

    def prefill(self, work: Work) -> AsyncGenerator[HandOver]:
        return self._counted("prefill", super().prefill(work))


class SteppingSender:
    """Stands for the network to a decode that takes the hand-over, or refuses it."""

    def __init__(self, fault: EngineFault | None) -> None:
        self._fault = fault
        self.begun = self.ended = 0

    async def send(self, message: HandOverMessage, timeout_s: float) -> float:
        self.begun += 1
        try:
            await _steps(6)
            if self._fault is not None:
                raise self._fault
            return 0.1
        finally:
            self.ended += 1


class OneJob:
    """A job of an adapter whose engine needs no network, as the HTTP server runs it."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.kind = kind
        self.engine = SteppingEngine()
        self.engine.hands_over_first = "before" in kind
        self.adapter: Adapter = make_adapter("both", folder, self.engine)
        self.adapter.handover_address = ("127.0.0.1", 9000)
        fault = EngineFault(codes.TRANSFER_FAILED, "no") if "refused" in kind else None
        self.sender = SteppingSender(fault)
        self.adapter.sender = self.sender  # type: ignore[assignment]
        self.sent: list[bytes] = []
        self.answers: list[EngineFault | None] = []
        self.adapter.monitor.health.identity = self.engine.identity
        self.adapter.monitor.look = lambda: _steps(2)  # type: ignore[method-assign]
        self.adapter._engine_changed()

    async def start(self) -> Job:
        for seen in (self.sent, self.answers, self.engine.begun, self.engine.closed):
            seen.clear()
        self.adapter.enter()
        if self.kind.startswith("prefill"):
            request = PrefillRequest.model_validate(body(PROMPT) | {"ticket": None})
            hashed = token_hash(PROMPT)
            ticket = Ticket("ab" * 16, "r1", 0, self.adapter.compat, "d", "127.0.0.1", 1, 40, hashed, 30.0)
            return await self.adapter.start_prefill(request, sign(KEY, ticket), None)
        mode = "local" if self.kind == "local" else "remote"
        return await self.adapter.start_decode(DecodeRequest.model_validate(body(PROMPT) | {"mode": mode}), None)

    async def prefills_part(self) -> None:
        """Hand over as soon as there is a ticket, in the place of the POST, which is not answered
        by this test but by the job.
        """
        while not self.sent:
            await asyncio.sleep(0)
        line = json.loads(self.sent[0].split(b"\n")[0])
        ticket = verify(KEY, line["ticket"])
        parameters = {"bad": 1} if "bad" in self.kind else dict(PARAMETERS)
        message = HandOverMessage(ticket, "p", "vllm", parameters, 3, 0, 0.0)
        try:
            expected = self.adapter.door._accept(message)
        except ValueError:
            return
        expected.arrived.set_result(message)
        self.answers.append(await expected.answered)

    async def respond(self, job: Job, gone: asyncio.Event) -> None:
        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                self.sent.append(message["body"])

        response = NdjsonResponse(job.lines, self.adapter.keep(job), job.deadline_s)
        await response({}, receive, send)


KINDS = ["local", "remote", "remote bad", "prefill", "prefill before", "prefill refused", "prefill before refused"]


@pytest.mark.parametrize("how", ["client leaves", "engine lost", "server ends"])
@pytest.mark.parametrize("kind", KINDS)
async def test_whenever_it_ends_nothing_is_held(tmp_path: Path, kind: str, how: str) -> None:
    problems: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: problems.append(context))
    before = asyncio.all_tasks()
    finished, one = 0, OneJob(tmp_path, kind)
    for steps in range(_STEPS):
        gone = asyncio.Event()
        job = await one.start()
        tasks = [asyncio.create_task(one.respond(job, gone))]
        if kind.startswith("remote"):
            tasks.append(asyncio.create_task(one.prefills_part()))
        await _steps(steps + 1)  # with none, the response would not have begun
        by_itself = tasks[0].done()
        finished += by_itself
        if how == "engine lost":
            for interrupt in one.adapter.interruptions():
                interrupt(ELSEWHERE)
        if how == "client leaves":
            gone.set()
        if how == "server ends":
            tasks[0].cancel()
        await asyncio.gather(tasks[0], return_exceptions=True)
        if not one.sent:
            tasks[-1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(200):
            if asyncio.all_tasks() <= before:
                break
            await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before, steps
        adapter, engine = one.adapter, one.engine
        assert adapter.active == 0, steps
        assert len(adapter.ledger) == 0, steps
        assert adapter.door._expected == {}, steps
        assert adapter.work_done.queued_prompts == 0, steps
        assert engine.open_generators == 0, steps
        assert engine.closed == engine.begun, steps
        assert len(engine.closed) <= 1, steps
        assert one.sender.begun == one.sender.ended, steps
        if kind.startswith("remote") and one.sent and engine.begun:
            assert len(one.answers) == 1, steps
        if by_itself:
            assert adapter.monitor._looks_after_cancel == 0, "an end of its own is no cancellation"
        adapter.monitor._looks_after_cancel = 0
        ends = b"".join(one.sent).count(b'"type":"end"') + b"".join(one.sent).count(b'"type":"error"')
        assert ends <= 1, steps
    gc.collect()
    await _steps(3)
    assert problems == []
    assert 0 < finished < _STEPS, finished
