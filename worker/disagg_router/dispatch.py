"""Drives one request over its attempts: choose, reserve, prefill, transfer, decode; on failure the next pair goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from disagg_router.admission import AdmissionQueue
from disagg_router.client import Line, WorkerClient
from disagg_router.errors import ApiError, AttemptFailed, NoRoom
from disagg_router.metrics import Metrics
from disagg_router.request_state import ProtocolViolation, RequestState, Token
from disagg_router.table import WorkerTable
from disagg_router.workers import Choice, Worker, pair_key

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Trace:
    """What happened to a request. Times are durations in seconds."""

    prefill: Worker | None = None
    decode: Worker | None = None
    path: str = ""
    kv_bytes: int = 0
    transfer_s: float = 0.0
    exposed_s: float = 0.0
    interface: str = ""
    queue_s: float = 0.0
    attempts: int = 0


@dataclass(frozen=True, slots=True)
class Finished:
    reason: str


@dataclass(frozen=True, slots=True)
class _LegEnded:
    """A leg's iterator is through, or broke."""

    leg: str
    error: BaseException | None = None


class Dispatcher:
    """Shared by all requests of a router."""

    def __init__(self, client: WorkerClient, table: WorkerTable, queue: AdmissionQueue, metrics: Metrics, timeout_s: float) -> None:
        self._client = client
        self._table = table
        self._queue = queue
        self._metrics = metrics
        self._timeout_s = timeout_s

    async def run(self, state: RequestState, trace: Trace) -> AsyncIterator[Token | Finished]:
        """Tokens in order, then Finished. Raises ApiError when every attempt failed or the queue's limits were reached."""
        started_s = waiting_since_s = time.monotonic()
        deadline_s = started_s + self._timeout_s
        turn = self._queue.turn()
        full: set[str] = set()
        pool = "decode"
        if self._queue.crowded(turn):
            await self._wait(turn, pool, waiting_since_s, trace)
        while True:
            choice: Choice | None = None
            try:
                choice = self._choose(state, full)
                async for item in self.attempt(state, trace, choice, deadline_s):
                    yield item
                    waiting_since_s = time.monotonic()
                    if isinstance(item, Finished):
                        return
            except NoRoom as refusal:
                pool = refusal.pool
                refused = self._refused(choice, pool) if choice is not None else None
                if refused is not None and refused not in full:
                    full.add(refused)
                    state.next_attempt()
                    continue
                full.clear()
                await self._wait(turn, pool, waiting_since_s, trace)
                state.next_attempt()
            except AttemptFailed as failure:
                self._failed(state, failure)
            finally:
                self._queue.wake()
            if time.monotonic() > deadline_s:
                raise ApiError(504, f"not finished within {self._timeout_s:g} s", code="deadline_exceeded")

    @staticmethod
    def _refused(choice: Choice, pool: str) -> str | None:
        worker = choice.prefill if pool == "prefill" else choice.decode
        return worker.incarnation if worker is not None else None

    def _choose(self, state: RequestState, full: set[str]) -> Choice:
        choice = self._table.choose(single_token=state.single_token, full=full)
        if choice is None:
            raise NoRoom("prefill" if state.single_token else "decode", "no worker is ready")
        if choice.prefill is None and full and any(w.incarnation in full and w.serves("prefill") for w in self._table.workers()):
            # Prefill workers exist but are full: that is load, not absence, so the request waits for them.
            raise NoRoom("prefill", "every prefill worker is full")
        return choice

    async def _wait(self, turn: int, pool: str, since_s: float, trace: Trace) -> None:
        started_s = time.monotonic()
        await self._queue.wait(turn, pool, since_s)
        trace.queue_s += time.monotonic() - started_s

    def _failed(self, state: RequestState, failure: AttemptFailed) -> None:
        """Remember whom to avoid; raises ApiError when no attempt is left."""
        now_s = time.monotonic()
        for key in failure.blame:
            self._table.breaker.failed(key, now_s)
            if failure.reason == "worker_lost":
                self._table.lost(key)
        log.warning("request %s attempt %d failed: %s: %s", state.request_id, state.epoch, failure.reason, failure)
        self._metrics.failovers.labels(failure.reason).inc()
        if not failure.retryable:
            raise ApiError(400, f"the request was refused: {failure.reason}", code=failure.reason)
        if not state.failed():
            raise ApiError(503, f"{state.failures} attempts failed", code="workers_failed", retry_after_s=1)
        state.next_attempt()

    async def attempt(self, state: RequestState, trace: Trace, choice: Choice, deadline_s: float) -> AsyncIterator[Token | Finished]:
        """One try on one choice of workers. Raises NoRoom or AttemptFailed."""
        trace.prefill, trace.decode = choice.prefill, choice.decode
        trace.attempts += 1
        n = len(state.prompt) + len(state.emitted)
        events: asyncio.Queue[Line | _LegEnded] = asyncio.Queue()
        body = state.body(max(1.0, deadline_s - time.monotonic()))
        with self._table.busy(choice.prefill, n), self._table.busy(choice.decode, 0):
            legs = _Legs(self._client, choice, body, events)
            try:
                async for item in self._merge(state, trace, legs, events, deadline_s):
                    yield item
            finally:
                await legs.close()

    async def _merge(
        self, state: RequestState, trace: Trace, legs: _Legs, events: asyncio.Queue[Any], deadline_s: float
    ) -> AsyncIterator[Token | Finished]:
        legs.start()
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline_s - time.monotonic())):
                    event = await events.get()
            except TimeoutError:
                raise AttemptFailed("deadline", reason="deadline_exceeded", retryable=False) from None
            if isinstance(event, _LegEnded):
                if event.error is not None:
                    raise event.error
                continue
            leg, line = event["leg"], event["line"]
            try:
                for token in self._line(state, trace, legs, leg, line):
                    yield token
            except ProtocolViolation as violation:
                raise AttemptFailed(str(violation), reason="protocol", blame=legs.blame(leg)) from None
            if (reason := state.finished) is not None:
                self._succeeded(trace)
                yield Finished(reason)
                return

    def _line(self, state: RequestState, trace: Trace, legs: _Legs, leg: str, line: Line) -> list[Token]:
        kind = line["type"]
        if kind == "token":
            return state.token(line)
        if kind == "ticket":
            legs.start_prefill(line["ticket"])
        elif kind == "accepted":
            trace.path = str(line["path"])
            trace.interface = str(line["interface"])
        elif kind == "transferred":
            trace.kv_bytes = int(line["kv_bytes"])
            trace.transfer_s, trace.exposed_s = float(line["transfer_s"]), float(line["exposed_s"])
        elif kind == "end":
            if line["finish_reason"] != "prefilled":
                state.end(line["finish_reason"])
                trace.path = trace.path or "prefill_only"
        elif kind == "error":
            code = str(line.get("code"))
            if code == "draining":
                raise NoRoom(leg, str(line.get("message")))
            retryable = bool(line.get("retryable"))
            raise AttemptFailed(str(line.get("message")), reason=code, blame=legs.blame("pair") if retryable else (), retryable=retryable)
        return []

    def _succeeded(self, trace: Trace) -> None:
        for worker in (trace.prefill, trace.decode):
            if worker is not None:
                self._table.breaker.succeeded(worker.incarnation)
        if trace.prefill is not None and trace.decode is not None:
            self._table.breaker.succeeded(pair_key(trace.prefill, trace.decode))


class _Legs:
    """The one or two streams of an attempt, each in a task that feeds one queue."""

    def __init__(self, client: WorkerClient, choice: Choice, body: Line, events: asyncio.Queue[Any]) -> None:
        self._client = client
        self._choice = choice
        self._body = body
        self._events = events
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        if self._choice.decode is not None:
            mode = "remote" if self._choice.prefill is not None else "local"
            self._spawn("decode", self._choice.decode, self._body | {"mode": mode})
        elif self._choice.prefill is not None:
            self._spawn("prefill", self._choice.prefill, self._body | {"ticket": None})

    def start_prefill(self, ticket: Line) -> None:
        if self._choice.prefill is None or len(self._tasks) > 1:
            raise ProtocolViolation("a ticket that was not asked for")
        self._spawn("prefill", self._choice.prefill, self._body | {"ticket": ticket})

    def blame(self, leg: str) -> tuple[str, ...]:
        """Keys for the breaker: one worker, or the pair."""
        prefill, decode = self._choice.prefill, self._choice.decode
        if leg == "pair" and prefill is not None and decode is not None:
            return (pair_key(prefill, decode),)
        worker = prefill if leg == "prefill" else decode
        return (worker.incarnation,) if worker is not None else ()

    def _spawn(self, leg: str, worker: Worker, body: Line) -> None:
        self._tasks.append(asyncio.create_task(self._pump(leg, worker, body)))

    async def _pump(self, leg: str, worker: Worker, body: Line) -> None:
        try:
            async with self._client.stream(worker, leg, body) as lines:
                async for line in lines:
                    self._events.put_nowait({"leg": leg, "line": line})
            self._events.put_nowait(_LegEnded(leg))
        except (NoRoom, AttemptFailed) as error:
            self._events.put_nowait(_LegEnded(leg, error))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*self._tasks, return_exceptions=True)
