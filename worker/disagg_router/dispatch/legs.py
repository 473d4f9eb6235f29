"""The one or two streams of an attempt, each in a task of its own, merged into one queue."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import dataclass

from disagg_router.dispatch.request_state import ProtocolViolation
from disagg_router.errors import AttemptFailed, NoRoom
from disagg_router.workers.client import Line, WorkerClient
from disagg_router.workers.lifelines import Lifelines
from disagg_router.workers.pair_choice import Choice, pair_key
from disagg_router.workers.worker_info import Worker
from disagg_wire import codes
from disagg_wire.protocol import (
    FEATURE_DIGEST,
    FEATURE_FIRST_TOKEN_WITHIN,
    FEATURE_LOCAL_UP_TO,
    FEATURE_PREFILL_INCARNATION,
    FEATURE_PREFILL_TRANSPORTS,
    FEATURE_RESUME,
)
from disagg_wire.room import Room

# With a bound, a slow client makes the connections to the workers wait instead of making this
# process grow.
_MAX_EVENTS = 256
# The time that this process takes to read what has come.
_OVERDUE_S = 0.05
# The largest value that a body may contain (docs/protocol.md): a performance profile can be such
# that a prompt takes days.
_MAX_WITHIN_S = 86400.0
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LegLine:
    """One event of a leg ("prefill" or "decode")."""

    leg: str
    line: Line


@dataclass(frozen=True, slots=True)
class LegTaken:
    """A sign that the leg's worker has taken the request in and will send lines."""

    leg: str


@dataclass(frozen=True, slots=True)
class LegEnded:
    """A sign that a leg's stream has ended or broken off."""

    leg: str
    error: Exception | None = None


class Legs:
    """The streams of one attempt: decode first, and prefill once there is a ticket.

    The worker that computes the prompt is told how much time it has for the first token, if `due_s`
    names a monotonic time. Decode may prefill the prompt itself if it lacks at most
    `local_up_to_tokens` of it. A leg ends when `lifelines` gives its worker up.
    """

    def __init__(
        self,
        client: WorkerClient,
        choice: Choice,
        body: Line,
        due_s: float | None = None,
        local_up_to_tokens: int = 0,
        lifelines: Lifelines | None = None,
    ) -> None:
        self._client = client
        self._lifelines = lifelines or Lifelines()
        self._choice = choice
        self._body = body
        self._due_s = due_s
        self._local_up_to_tokens = local_up_to_tokens
        self._events: asyncio.Queue[LegTaken | LegLine | LegEnded] = asyncio.Queue(_MAX_EVENTS)
        self._tasks: list[asyncio.Task[None]] = []
        self._running: set[str] = set()
        self._workers: dict[str, Worker] = {}

    def start(self) -> None:
        if self._choice.decode is not None:
            more = self._remote(self._choice) or {"mode": "local"} | self._within(self._choice.decode)
            self._spawn("decode", self._choice.decode, self._body | more)
        elif self._choice.prefill is not None:
            self._spawn(
                "prefill", self._choice.prefill, self._body | {"ticket": None} | self._within(self._choice.prefill)
            )

    def start_prefill(self, ticket: Line, room: Room | None) -> None:
        """Start the prefill leg. Raises ProtocolViolation for a ticket that was not asked for."""
        if self._choice.prefill is None or len(self._tasks) > 1:
            raise ProtocolViolation("a ticket that was not asked for")
        told = {} if room is None else {"decode_room": room.to_json()}
        self._spawn(
            "prefill", self._choice.prefill, self._body | {"ticket": ticket} | told | self._within(self._choice.prefill)
        )

    def _remote(self, choice: Choice) -> Line:
        """Return what decode is told of the prefill worker, to which it binds the ticket where both
        know such tickets.
        """
        prefill, decode = choice.prefill, choice.decode
        if prefill is None or decode is None:
            return {}
        told: Line = {"mode": "remote"}
        if all(FEATURE_PREFILL_INCARNATION in worker.features for worker in (prefill, decode)):
            told[FEATURE_PREFILL_INCARNATION] = prefill.incarnation
            if prefill.transports and all(FEATURE_PREFILL_TRANSPORTS in w.features for w in (prefill, decode)):
                told[FEATURE_PREFILL_TRANSPORTS] = dict(prefill.transports)
        if self._local_up_to_tokens and FEATURE_LOCAL_UP_TO in decode.features:
            told[FEATURE_LOCAL_UP_TO] = self._local_up_to_tokens
        return told

    def _within(self, worker: Worker) -> Line:
        if self._due_s is None or FEATURE_FIRST_TOKEN_WITHIN not in worker.features:
            return {}
        return {FEATURE_FIRST_TOKEN_WITHIN: max(-_MAX_WITHIN_S, min(_MAX_WITHIN_S, self._due_s - time.monotonic()))}

    def runs(self, leg: str | None = None) -> bool:
        """Return whether the leg, or any leg, may still send something."""
        return bool(self._running) if leg is None else leg in self._running

    async def next(self) -> LegTaken | LegLine | LegEnded:
        event = await self._events.get()
        if isinstance(event, LegEnded):
            self._running.discard(event.leg)
        return event

    async def overdue(self) -> LegTaken | LegLine | LegEnded | None:
        """Return an event for which the time is over, if it is there: it may have come long ago,
        while this process did not run.
        """
        try:
            async with asyncio.timeout(_OVERDUE_S):
                return await self.next()
        except TimeoutError:
            return None

    def blame(self, leg: str) -> tuple[str, ...]:
        """Return the breaker keys of one leg's worker, or of the pair."""
        prefill, decode = self._choice.prefill, self._choice.decode
        if leg == "pair":
            return () if prefill is None or decode is None else (pair_key(prefill, decode),)
        worker = prefill if leg == "prefill" else decode
        return () if worker is None else (worker.incarnation,)

    def _spawn(self, leg: str, worker: Worker, body: Line) -> None:
        # Its address may have become that of a worker with other weights since the last poll.
        body |= {FEATURE_DIGEST: worker.digest} if FEATURE_DIGEST in worker.features else {}
        if FEATURE_RESUME in body and FEATURE_RESUME not in worker.features:
            del body[FEATURE_RESUME]
        self._workers[leg] = worker
        self._running.add(leg)
        self._tasks.append(asyncio.create_task(self._pump(leg, worker, body)))

    async def _pump(self, leg: str, worker: Worker, body: Line) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with (
                self._lifelines.stream(worker) as life,
                self._client.stream(worker, leg, body) as lines,
                contextlib.aclosing(lines),
            ):
                await self._events.put(LegTaken(leg))
                async for line in lines:
                    life.heard_s = loop.time()
                    await self._events.put(LegLine(leg, line))
            await self._events.put(LegEnded(leg))
        except (NoRoom, AttemptFailed) as error:
            await self._events.put(LegEnded(leg, error))
        except Exception:
            log.exception("the %s stream from %s failed", leg, worker.pod)
            await self._events.put(LegEnded(leg, AttemptFailed("internal error", reason=codes.INTERNAL)))

    async def close(self, *, stop: bool = True) -> None:
        """Cancel the legs that still run, so that the workers free what they hold.

        Of a stream that can be resumed, workers make some more unless they are told to `stop`.
        """
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if stop and (resume := self._body.get(FEATURE_RESUME)) is not None:
            for worker in (self._workers[leg] for leg in self._running):
                if FEATURE_RESUME in worker.features:
                    self._client.stop_soon(worker, resume["name"], resume["run"], self._body["epoch"])
