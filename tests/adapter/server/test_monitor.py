"""Tests of the watch over an engine, with small limits: what starts, ends, hangs or is garbled."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from tests.adapter.rig import until
from tests.fakes.adapter_engine import IDENTITY, FakeEngine

from disagg_adapter.engines.contract import NAN, EngineFault, NotReady, Unusable
from disagg_adapter.server.monitor import Monitor, Patience
from disagg_wire import codes
from disagg_wire.engine_metrics.readings import Readings

POLL_S, AFTER_S, PROBE_S = 0.01, 0.1, 0.1
PATIENCE = Patience(POLL_S, AFTER_S, PROBE_S, 5.0)
# For engines that must not be found hung because the test itself was held up.
PATIENT = Patience(POLL_S, AFTER_S, 1.0, 5.0)


class Watched:
    """A monitor that runs, and what it called."""

    def __init__(self, engine: FakeEngine, patience: Patience) -> None:
        self.engine = engine
        self.work = False
        self.served: list[str | None] = []
        self.monitor = Monitor(engine, patience, lambda: self.work, self._changed)

    def _changed(self) -> None:
        identity = self.monitor.health.identity
        self.served.append(None if identity is None else identity.started)

    @property
    def serves(self) -> bool:
        return self.monitor.health.identity is not None

    async def next_look(self, looks: int = 1) -> None:
        for _ in range(looks):
            self.engine.looked.clear()
            await self.engine.looked.wait()


@asynccontextmanager
async def watched(engine: FakeEngine | None = None, patience: Patience = PATIENCE) -> AsyncIterator[Watched]:
    one = Watched(engine or FakeEngine(), patience)
    task = asyncio.create_task(one.monitor.run())
    try:
        async with asyncio.timeout(20):
            yield one
        assert not task.done(), task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_an_engine_serves_after_its_first_token() -> None:
    async with watched() as one:
        assert one.monitor.health.waits_for == "the engine has not been asked yet"
        await until(lambda: one.serves)
        assert (one.engine.probes, one.served) == (1, ["first start"])
        health = one.monitor.health
        assert (health.identity, health.waits_for, health.reason, health.hung) == (IDENTITY, "", "", "")
        before_s = health.read_s
        await one.next_look(2)
        assert one.monitor.health.read_s > before_s


@pytest.mark.parametrize(
    ("fault", "words", "reason"),
    [
        (NotReady("/health answers 503"), "/health answers 503", ""),
        (Unusable("UnknownEngineVersion", "version 9"), "version 9", "UnknownEngineVersion"),
        (KeyError("version"), "not understood: KeyError('version')", ""),
        (ValueError("no float"), "not understood", ""),
        (EngineFault(codes.INTERNAL, "out of luck"), "the first token: out of luck", ""),
    ],
)
async def test_what_it_waits_for_is_said_and_the_watch_goes_on(fault: Exception, words: str, reason: str) -> None:
    async with watched(FakeEngine(fault=fault)) as one:
        await until(lambda: words in one.monitor.health.waits_for)
        assert one.monitor.health.reason == reason
        assert not one.serves
        one.engine.fault = None
        await until(lambda: one.serves)
        assert one.monitor.health.reason == ""


async def test_an_engine_that_does_not_get_to_its_first_token_counts_as_hung_in_the_end() -> None:
    async with watched(FakeEngine(probe_fault=TimeoutError()), Patience(POLL_S, 1.0, 1.0, 0.05)) as one:
        await until(lambda: "did not serve within 0.05 s" in one.monitor.health.hung)
        assert one.monitor.health.waits_for in ("the first token", "the first token: it takes too long")
        one.engine.probe_fault = None
        await until(lambda: one.serves)
        assert one.monitor.health.hung == ""


@pytest.mark.parametrize("fault", [EngineFault(codes.INTERNAL, "refused"), ValueError("a one"), KeyError("x")])
async def test_an_engine_that_stops_answering_or_garbles_its_metrics_starts_anew(fault: Exception) -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        one.engine.read_fault = fault
        await until(lambda: not one.serves)
        one.engine.read_fault = None
        await until(lambda: one.serves)
        assert one.served == ["first start", None, "first start"]


# Nobody looks of its own accord.
SLOW = Patience(600.0, 6000.0, 1.0, 5.0)


async def test_an_engine_at_whose_port_nobody_listens_is_gone_at_the_first_look() -> None:
    async with watched(patience=SLOW) as one:
        await until(lambda: one.serves)
        await one.monitor.look()
        assert one.serves
        one.engine.fault = NotReady("it starts")
        one.engine.read_fault = EngineFault(codes.INTERNAL, "refused", is_gone=True)
        await one.monitor.look()
        assert one.served == ["first start", None]
        await one.monitor.look()  # which nobody waits for: the watch goes on by itself


async def test_a_look_that_is_asked_for_counts_as_any_other_and_is_not_waited_for_long() -> None:
    async with watched(patience=SLOW) as one:
        await until(lambda: one.serves)
        one.engine.fault = NotReady("it starts")
        one.engine.read_fault = EngineFault(codes.INTERNAL, "busy")
        await one.monitor.look()
        assert one.serves
        await asyncio.gather(one.monitor.look(), one.monitor.look())
        assert not one.serves
    async with watched(patience=replace(SLOW, poll_s=0.1, probe_after_s=60.0)) as one:
        await until(lambda: one.serves)
        hangs = asyncio.Event()

        async def read() -> Readings:
            await hangs.wait()
            return Readings(started="first start")

        one.engine.read = read
        await one.monitor.look()
        assert one.serves
        hangs.set()


async def test_one_answer_that_fails_is_forgiven() -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        for _ in range(3):
            one.engine.read_fault = EngineFault(codes.INTERNAL, "busy")
            await one.next_look()
            one.engine.read_fault = None
            await one.next_look(2)
        assert one.served == ["first start"]


async def test_an_engine_that_sends_tokens_lives_though_it_does_not_answer() -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        original, asked = one.engine.read, 0

        async def times_out() -> Readings:
            nonlocal asked
            asked += 1
            one.monitor.progress()
            raise EngineFault(codes.INTERNAL, "timeout")

        one.engine.read = times_out  # type: ignore[method-assign]
        await until(lambda: asked == 5)
        one.engine.read = original  # type: ignore[method-assign]
        await one.next_look(2)
        assert one.served == ["first start"]


async def test_a_restart_between_two_looks_is_seen() -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        one.engine.identity = replace(IDENTITY, started="second start")
        await until(lambda: one.served == ["first start", None, "second start"])


async def hung(one: Watched) -> None:
    await until(lambda: one.monitor.health.hung != "")


@pytest.mark.parametrize("counters", [Readings(), Readings(prompt_tokens_total=float("nan"), running=3.0)])
async def test_an_engine_that_has_work_and_makes_no_token_hangs(counters: Readings) -> None:
    async with watched(FakeEngine(readings=counters)) as one:
        await until(lambda: one.serves)
        one.engine.probe_gate.shut()
        one.engine.fault = NotReady("busy")
        one.work = True
        await hung(one)
        assert not one.serves
        assert one.monitor.health.hung.startswith("no progress for")
        # It stays hung, whatever it answers, until it serves again.
        one.engine.probe_gate.open()
        await until(lambda: one.monitor.health.waits_for == "busy")
        assert one.monitor.health.hung
        one.engine.fault = None
        await until(lambda: one.serves)
        assert one.monitor.health.hung == ""


async def test_another_start_of_a_hung_engine_is_not_hung() -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        one.engine.probe_gate.shut()
        one.engine.fault = NotReady("gone")
        one.work = True
        await hung(one)
        one.engine.identity, one.engine.fault = replace(IDENTITY, started="second start"), None
        await until(lambda: one.monitor.health.hung == "")
        assert one.monitor.health.waits_for == "the first token"


async def test_a_probe_that_fails_at_once_is_enough() -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        one.engine.probe_fault = EngineFault(codes.INTERNAL, "EngineDeadError")
        one.work = True
        await hung(one)
        assert "EngineDeadError" in one.monitor.health.hung


async def test_an_engine_that_refuses_the_probe_for_want_of_room_gets_all_of_its_time() -> None:
    async with watched(patience=PATIENT) as one:
        await until(lambda: one.serves)
        one.engine.probe_fault = EngineFault(codes.NO_CAPACITY, "queue full")
        one.work = True
        await hung(one)
        assert one.engine.probes > 3  # One was for the start.


def by_counters(one: Watched) -> None:
    one.engine.steps += 1


def by_stream(one: Watched) -> None:
    one.monitor.progress()


@pytest.mark.parametrize("progress", [by_counters, by_stream])
async def test_a_slow_engine_that_gets_on_does_not_hang(progress: Callable[[Watched], None]) -> None:
    async with watched(patience=PATIENT) as one:
        await until(lambda: one.serves)
        one.engine.probe_gate.shut()
        one.work = True
        for _ in range(2):
            # Each step takes longer than the time after which a token is asked for, and the token
            # waits behind the step.
            one.engine.probe_gate.reached.clear()
            await one.engine.probe_gate.reached.wait()
            progress(one)
        assert one.served == ["first start"]


async def test_an_idle_engine_is_left_alone() -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        one.engine.probe_gate.shut()
        started_s = time.monotonic()
        while time.monotonic() - started_s < AFTER_S + PROBE_S:
            await one.next_look()
        assert (one.served, one.engine.probes) == (["first start"], 1)


async def test_cancelled_requests_are_followed_by_one_token_of_an_idle_engine() -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        for _ in range(5):
            one.monitor.nudge()
        await until(lambda: one.engine.probes == 2)
        one.monitor.nudge()
        await one.next_look(5)
        assert one.engine.probes == 2  # at most one a second


async def test_an_engine_that_steps_anyway_is_asked_for_no_token() -> None:
    engine = FakeEngine(readings=Readings(generated_tokens_total=NAN))
    async with watched(engine) as one:
        await until(lambda: one.serves)
        original = engine.read

        async def stepping() -> Readings:
            engine.steps += 1
            return await original()

        engine.read = stepping  # type: ignore[method-assign]
        await one.next_look()
        one.monitor.nudge()
        await one.next_look(3)
        engine.read = original  # type: ignore[method-assign]
        await one.next_look(3)
        assert engine.probes == 1


async def test_a_probe_after_a_cancellation_that_fails_says_nothing() -> None:
    async with watched() as one:
        await until(lambda: one.serves)
        one.engine.probe_fault = EngineFault(codes.INTERNAL, "no")
        one.monitor.nudge()
        await until(lambda: one.engine.probes == 2)
        await one.next_look(2)
        assert one.served == ["first start"]
