"""What all jobs of an adapter have in common: a task that makes lines, and their stream."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from disagg_adapter.engines.contract import Delta, Engine, EngineFault, Work
from disagg_adapter.ledger import Ledger
from disagg_adapter.metrics import Metrics
from disagg_adapter.server.handovers import HandOverDoor, HandOverSender
from disagg_adapter.server.monitor import Monitor
from disagg_adapter.settings import Settings
from disagg_adapter.transport import Used
from disagg_adapter.work_done import WorkDone
from disagg_protocol.bodies import (
    ENDS,
    DecodeRequest,
    Line,
    Lines,
    PrefillRequest,
    encode_line,
    encode_token,
    error_json,
    event_json,
)
from disagg_protocol.events import EndEvent, ErrorEvent, TokenEvent
from disagg_protocol.requests import Job
from disagg_wire import codes, series
from disagg_wire.room import Room

log = logging.getLogger(__name__)
ENGINE_LOST = ErrorEvent(codes.INTERNAL, "the engine serves no more", retryable=True)


def work_of(request: DecodeRequest | PrefillRequest) -> Work:
    """Return a request as an engine gets it. Its name is used for one call only."""
    return Work(
        request_id=f"{request.request_id}-{request.epoch}-{secrets.token_hex(4)}",
        tokens=request.tokens,
        prompt_tokens=request.prompt_tokens,
        sampling=request.sampling,
        tenant=request.tenant,
        adapter=request.adapter,
    )


class Host(Protocol):
    """The parts of an adapter that its jobs need."""

    settings: Settings
    engine: Engine
    ledger: Ledger
    work_done: WorkDone
    metrics: Metrics
    monitor: Monitor
    door: HandOverDoor
    sender: HandOverSender
    key: bytes
    incarnation: str
    handover_address: tuple[str, int]

    @property
    def compat(self) -> str: ...

    def transport(self) -> Used: ...

    def kv_bytes(self, tokens: int) -> int: ...

    def transfer_timeout_s(self, kv_bytes: int) -> float: ...

    def room(self) -> Room: ...


class Run(ABC):
    """A job whose lines are made by a task of its own, so that it can be interrupted."""

    direction = series.RECEIVED
    """The way of its KV."""

    def __init__(self, adapter: Host, work: Work, deadline_s: float) -> None:
        self._adapter = adapter
        self._work = work
        self._deadline_s = time.monotonic() + deadline_s
        # The lines that are not sent yet, at most as many as one request can emit.
        self._lines: list[bytes] = []
        self._last = False  # whether the line that ends the job is among them
        self._reader: asyncio.Future[None] | None = None
        self._start_index = self._index = work.emitted
        self._finish_reason: str | None = None
        self._task: asyncio.Task[None] | None = None
        self._begun = self._closed = False

    def start(self) -> Job:
        self._task = asyncio.create_task(self._guarded())
        return Job(self._read(), self.close, self.interrupt, self._deadline_s)

    def close(self) -> None:
        """Give back what the job holds (idempotent): its task closes the engine's generator.

        Its room stays taken until the engine is rid of it.
        """
        # A second cancellation would hit the task while it cleans up.
        if self._task is not None and not self._task.done() and not self._closed:
            self._task.cancel()
            self._adapter.monitor.nudge()
        self._closed = True
        if not self._begun:  # and now it never will
            self._give_back()

    def _give_back(self) -> None:
        adapter, name = self._adapter, self._work.request_id
        ledger = adapter.ledger  # that of the engine's present start
        adapter.engine.when_gone(name, lambda: ledger.release(name))

    def interrupt(self, error: ErrorEvent) -> None:
        """End the job at once, whether its lines are read or not, with an error as the last one."""
        self.close()
        self._emit(error_json(error))

    async def _read(self) -> AsyncIterator[Lines]:
        """Yield the lines that have come since the last time, up to the one that ends the job."""
        loop = asyncio.get_running_loop()
        timer = loop.call_at(self._loop_deadline(), self._expire)
        try:
            end = False
            while not end:
                if not self._lines:
                    self._reader = loop.create_future()
                    await self._reader
                content, end = b"".join(self._lines), self._last
                self._lines.clear()
                yield Lines(content, end)
        finally:
            timer.cancel()

    def _expire(self) -> None:
        passed = ErrorEvent(codes.DEADLINE_EXCEEDED, "the request's deadline has passed", retryable=False)
        self._emit(error_json(passed))

    def _loop_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._deadline_s - time.monotonic()

    async def _guarded(self) -> None:
        self._begun = True
        try:
            await self._work_on()
            # The reader of the end closes the job, which must not hit the engine's generator while
            # it ends by itself.
            if self._finish_reason is not None:
                self._emit(event_json(EndEvent(self._finish_reason)))
        except EngineFault as fault:
            log.info("request %s: %s: %s", self._work.request_id, fault.code, fault)
            if fault.retryable:
                await self._adapter.monitor.look()
            self._failed(fault)
            self._emit(error_json(ErrorEvent(fault.code, str(fault), retryable=fault.retryable)))
        except Exception:
            log.exception("request %s failed", self._work.request_id)
            self._emit(error_json(ErrorEvent(codes.INTERNAL, "internal error; see the adapter's log", retryable=True)))
        finally:
            self._give_back()

    def _emit(self, line: Line) -> None:
        self._put(encode_line(line))
        self._last = self._last or line["type"] in ENDS

    def _put(self, line: bytes) -> None:
        """Hand a line to the reader; what comes after the one that ends the job is dropped."""
        if self._last:
            return
        self._lines.append(line)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _failed(self, fault: EngineFault) -> None:
        if fault.code == codes.TRANSFER_FAILED:
            self._adapter.metrics.transfer_failures.labels(self.direction, fault.code).inc()

    @abstractmethod
    async def _work_on(self) -> None:
        """Do the work. Raises EngineFault."""

    def _tokens(self, delta: Delta, cached_tokens: int | None) -> None:
        """Send the tokens that a piece of the engine's stream holds, and keep the end in mind."""
        self._finish_reason = delta.finish_reason
        if not delta.outputs:
            return
        index, lines = self._index, []
        for token, logprob, top_logprobs in delta.outputs:
            if logprob is None and index > self._start_index:
                lines.append(encode_token(index, token))
            else:
                cached = cached_tokens if index == self._start_index else None
                event = TokenEvent(index, token, logprob, top_logprobs, cached)
                lines.append(encode_line(event_json(event)))
            index += 1
        self._put(b"".join(lines))
        self._index = index
        adapter, work = self._adapter, self._work
        adapter.monitor.progress()
        adapter.ledger.grew(work.request_id, len(lines))
        adapter.work_done.generated(len(lines), work.prompt_tokens + index)

    async def _relay(self, deltas: AsyncGenerator[Delta], cached_tokens: int | None = None) -> None:
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                self._tokens(delta, delta.cached_tokens if cached_tokens is None else cached_tokens)
                if delta.finish_reason is not None:
                    return
        raise EngineFault(codes.INTERNAL, "the engine's stream ended without a reason")


async def end(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks that still run, and wait until they have ended. Their errors are dropped."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
