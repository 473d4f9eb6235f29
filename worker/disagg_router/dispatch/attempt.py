"""One attempt of a request on one choice of workers: reserve, prefill, transfer, decode."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from disagg_router.dispatch.legs import LegEnded, LegLine, Legs, LegTaken
from disagg_router.dispatch.request_state import ProtocolViolation, RequestState, Token
from disagg_router.dispatch.tail_times import Stage, Tails
from disagg_router.dispatch.trace import SLOW_PREFILL, Trace
from disagg_router.errors import AttemptFailed, NoRoom
from disagg_router.workers.client import Line, WorkerClient
from disagg_router.workers.pair_choice import Choice, has_other, pair_key
from disagg_router.workers.pair_link import reported
from disagg_router.workers.table import WorkerTable
from disagg_wire import codes, series
from disagg_wire.protocol import FEATURE_FIRST_TOKEN_FROM_DECODE
from disagg_wire.roles import BOTH
from disagg_wire.room import Room, parse_room

log = logging.getLogger(__name__)
# How long to wait for prefill to report why a transfer broke off that decode saw break off.
_REASON_S = 1.0
# A timer may be early by so much.
_TIMER_S = 0.01
# Errors that every worker would answer in the same way.
_FINAL = (codes.INVALID_REQUEST, codes.PROMPT_TOO_LONG, codes.DEADLINE_EXCEEDED)
# Errors that mean "not now, not here", with the pool that is full where it is not the one that
# answered. A ticket expires when prefill has not begun in time, that is, when the queue of prefill
# is long.
_ELSEWHERE = {codes.DRAINING: None, codes.NO_CAPACITY: None, codes.TICKET_EXPIRED: "prefill"}


@dataclass(frozen=True, slots=True)
class Finished:
    """The last item of a request that ended well."""

    reason: str


@dataclass(frozen=True, slots=True)
class Patience:
    """The time that an attempt waits for the next event of its workers, in seconds.

    `first_token_s` applies before its first token, `stall_s` between tokens.
    """

    first_token_s: float
    stall_s: float


def _path(choice: Choice) -> str:
    if choice.decode is None:
        return "prefill_only"
    return "local" if choice.prefill is None else "remote"


def _reason(choice: Choice) -> str:
    if choice.decode is None:
        return series.ONE_TOKEN
    if choice.prefill is not None:
        return series.SHIPPED
    return series.BOTH_ROLES if choice.decode.role == BOTH else series.NO_PREFILL


class Attempt:
    """One attempt, to be used once, by `items`.

    `room_changed` is called when others may try their luck, because workers have taken this request
    in or have become rid of it. `due_s` is the monotonic time by which the first token should be
    out; None if there is no such time.
    """

    def __init__(
        self,
        client: WorkerClient,
        table: WorkerTable,
        choice: Choice,
        state: RequestState,
        trace: Trace,
        patience: Patience,
        deadline_s: float,
        room_changed: Callable[[], None],
        due_s: float | None = None,
        local_up_to_tokens: int = 0,
        tails: Tails | None = None,
    ) -> None:
        self._table = table
        self._choice = choice
        self._state = state
        self._trace = trace
        self._patience = patience
        self._deadline_s = deadline_s
        self._room_changed = room_changed
        body = state.body(max(0.001, deadline_s - time.monotonic()))
        self._legs = Legs(client, choice, body, due_s, local_up_to_tokens, table.lifelines)
        self._stage = Stage(tails or Tails(), choice.computed_tokens, len(body["tokens"]))
        self._emitted_before = len(state.emitted)
        self._taken = False
        self._accepted = False
        self._has_ticket = False
        self._handed_over = False
        self._deferred: AttemptFailed | None = None
        self._prefilling = contextlib.ExitStack()
        self._began_s = time.monotonic()
        self._probed = table.breaker.probe(self._keys, self._began_s)
        trace.begin(choice.prefill, choice.decode, _path(choice), _reason(choice))

    async def items(self) -> AsyncGenerator[Token | Finished]:
        """Yield the tokens in order, then Finished. Raises NoRoom or AttemptFailed."""
        prefill, decode = self._choice.prefill, self._choice.decode
        blamed, stop = tuple[str, ...](), True
        with self._prefilling, self._table.busy(decode, requests=1):
            self._prefilling.enter_context(self._table.busy(prefill, requests=1))
            self._prefilling.enter_context(self._table.busy(prefill or decode, tokens=self._choice.computed_tokens))
            try:
                self._legs.start()
                while True:
                    for token in await self._step():
                        yield token
                    if (reason := self._state.finished) is not None:
                        self._succeeded()
                        yield Finished(reason)
                        return
                    if not self._legs.runs():
                        raise self._deferred or AttemptFailed(
                            "streams ended too early", reason="protocol", blame=self._suspect()
                        )
            except AttemptFailed as failure:
                blamed = failure.blame
                raise
            except (GeneratorExit, asyncio.CancelledError):
                stop = self._state.needs_no_more
                raise
            finally:
                self._table.breaker.release([key for key in self._probed if key not in blamed], self._began_s)
                await self._legs.close(stop=stop)
                if self._taken:
                    self._room_changed()
                if self._accepted:
                    state = self._state
                    self._table.decoded([*state.prompt, *state.emitted], state.tenant, state.identity, self._choice)

    async def _step(self) -> list[Token]:
        """Handle the next event and return the tokens that are in order because of it."""
        event: LegTaken | LegLine | LegEnded | None
        try:
            async with asyncio.timeout(self._patience_s()):
                event = await self._legs.next()
        except TimeoutError:
            event = await self._legs.overdue()
        if event is None:
            if self._deferred is not None:
                raise self._deferred
            if time.monotonic() >= self._deadline_s:
                raise AttemptFailed("the deadline has passed", reason=codes.DEADLINE_EXCEEDED, retryable=False)
            if self._stage.is_late(time.monotonic() + _TIMER_S):
                self._late()
                return []
            raise AttemptFailed("no event for too long", reason="stalled", blame=self._suspect())
        if isinstance(event, LegEnded):
            self._leg_ended(event)
            return []
        if isinstance(event, LegTaken):
            if self._choice.prefill is None or self._choice.decode is None:
                self._take()
            return []
        try:
            return self._line(event.leg, event.line)
        except (ProtocolViolation, KeyError, TypeError, ValueError, OverflowError) as violation:
            message = f"{event.leg} worker: {violation}"
            raise AttemptFailed(message, reason="protocol", blame=self._legs.blame(event.leg)) from None

    def _patience_s(self) -> float:
        patience_s = self._patience.stall_s if self._has_first else self._patience.first_token_s
        if self._deferred is not None:
            patience_s = _REASON_S
        until_s = self._stage.limit_at_s
        if until_s is not None:
            patience_s = min(patience_s, until_s - time.monotonic())
        return max(0.0, min(patience_s, self._deadline_s - time.monotonic()))

    def _late(self) -> None:
        """Raise the error with which the request goes elsewhere, if it is better off there."""
        prefills, now_s = self._stage.prefills, time.monotonic()
        prefill, decode, breaker = self._choice.prefill, self._choice.decode, self._table.breaker
        known = not prefills and any(breaker.is_open(key, now_s) for key in self._legs.blame("pair"))
        elsewhere = prefill is not None and decode is not None and has_other(
            self._table.workers(), prefill, decode, lambda key: breaker.is_open(key, now_s), prefills=prefills
        )  # fmt: skip
        if not self._stage.give_up(now_s, elsewhere=elsewhere, known=known):
            return
        if prefills:
            raise NoRoom("prefill", "the prompt takes too long", reason=SLOW_PREFILL, broke_off=True)
        raise AttemptFailed("the KV takes too long", reason="slow_link", blame=self._legs.blame("pair"))

    @property
    def _has_first(self) -> bool:
        return len(self._state.emitted) > self._emitted_before

    @property
    def _first_from_decode(self) -> bool:
        """Whether prefill sends no token, so that the first one comes from decode as well."""
        prefill = self._choice.prefill
        return prefill is not None and FEATURE_FIRST_TOKEN_FROM_DECODE in prefill.features

    @property
    def _prefill_is_done(self) -> bool:
        """Whether the attempt can end well without the prefill worker's stream."""
        return self._handed_over or (self._accepted and self._has_first)

    def _suspect(self) -> tuple[str, ...]:
        """Return the breaker keys of the worker that should have sent something."""
        if self._choice.decode is None or (self._has_ticket and not self._prefill_is_done):
            return self._legs.blame("prefill")
        if self._first_from_decode and self._has_ticket and not self._accepted:
            # Decode reads the KV from prefill's memory, and which of them hangs is not known.
            return self._legs.blame("pair")
        return self._legs.blame("decode")

    def _leg_ended(self, event: LegEnded) -> None:
        if event.leg == "prefill":
            self._prefilling.close()
        if event.error is None:
            return
        if event.leg == "prefill" and self._prefill_is_done:
            log.info("request %s: prefill was lost after it had done its part: %s", self._state.request_id, event.error)
            return
        # Prefill's own reason says more than the broken transfer that decode saw.
        raise event.error

    def _line(self, leg: str, line: Line) -> list[Token]:
        kind, trace = line["type"], self._trace
        if kind == "token":
            if leg == "decode":  # the prompt is computed, by whichever worker
                if "cached_tokens" in line:  # here, with this token
                    trace.computed(line)
                self._prefilling.close()
                if self._probed:  # No need to wait for the end of a long answer.
                    self._succeeded()
                    self._probed = ()
            elif self._first_from_decode:
                # The one that counts is decode's, which may be another.
                raise ProtocolViolation("it sent a token, although the first one comes from decode")
            else:
                trace.computed(line)
                self._stage.first_token(time.monotonic())
            return self._state.token(line)
        if kind == "ticket":
            self._has_ticket = True
            self._ticket(dict(line["ticket"]), parse_room(line.get("room")))
            self._take()
        elif kind == "accepted":
            self._accepted = True
            trace.moved_s = time.monotonic()
            self._stage.accepted(trace.moved_s)
            trace.path = str(line["path"])
            if trace.path == "local" and self._choice.prefill is not None and not self._has_ticket:
                self._prefilled_by_decode()
            self._moved(line)
        elif kind == "transferred":
            self._handed_over = True
            exposed_s = line.get("exposed_s")
            trace.exposed_s = None if exposed_s is None else float(exposed_s)
            self._moved(line)
        elif kind == "end":
            if line["finish_reason"] != "prefilled":
                self._state.end(line["finish_reason"])
            elif self._first_from_decode and not self._handed_over:
                raise ProtocolViolation("it ended without a hand-over")
        elif kind == "error":
            final = line.get("retryable") is False
            self._error(leg, str(line["code"]), str(line["message"]), final=final)
        return []

    def _prefilled_by_decode(self) -> None:
        """Note that decode lacks so little of the prompt that it computes it itself."""
        self._prefilling.close()
        state = self._state
        self._table.not_prefilled([*state.prompt, *state.emitted], state.tenant, state.identity, self._choice)
        self._choice = Choice(None, self._choice.decode)
        self._trace.prefill, self._trace.reason = None, series.FEW_MISSING
        self._take()

    def _moved(self, line: Line) -> None:
        """Record what an event says of the transfer; engines do not count the bytes of each."""
        trace, (prefill, decode) = self._trace, (self._choice.prefill, self._choice.decode)
        kv_bytes, transfer_s = line.get("kv_bytes"), line.get("transfer_s")
        trace.interface = str(line["interface"])
        trace.kv_bytes = (trace.kv_bytes or None) if kv_bytes is None else int(kv_bytes)
        trace.transfer_s = (trace.transfer_s or None) if transfer_s is None else float(transfer_s)
        if trace.path != "remote" or prefill is None or decode is None:
            return
        if (link := reported(line)) is not None:
            self._table.note_link(prefill, decode, link)
        link = self._table.link(prefill, decode)
        trace.transport, trace.evidence = link.transport, link.evidence if link.transport else ""

    def _take(self) -> None:
        """Note that the workers have taken the request in.

        A pair says so with its ticket, a single worker by answering at all.
        """
        if not self._taken:
            self._trace.clock.enter(series.PREFILL, time.monotonic())
        self._taken = True
        self._room_changed()

    def _ticket(self, ticket: Line, room: Room | None) -> None:
        """Start prefill: decode has reserved room, and reports how much is left."""
        prefill, decode = self._choice.prefill, self._choice.decode
        if decode is not None:
            self._table.note_room(decode, room)
        if not self._first_from_decode:
            self._stage.ticket(time.monotonic())
        self._legs.start_prefill(ticket, None if prefill is None else self._table.decode_room(prefill))

    def _error(self, leg: str, code: str, message: str, *, final: bool) -> None:
        """Handle the error with which a worker ended its stream; if it is `final`, another worker
        would fail in the same way.
        """
        if leg == "prefill" and self._prefill_is_done:
            return
        if code in _ELSEWHERE:
            raise NoRoom(_ELSEWHERE[code] or leg, message, reason=code, broke_off=True)
        blames = {codes.TRANSFER_FAILED: "pair", codes.TICKET_REFUSED: "pair", codes.INTERNAL: leg}
        blame = self._legs.blame(blames[code]) if code in blames and not final else ()
        failure = AttemptFailed(message, reason=code, blame=blame, retryable=not final and code not in _FINAL)
        if leg == "decode" and code == codes.TRANSFER_FAILED and self._legs.runs("prefill"):
            self._deferred = failure
            return
        # Prefill's reason is the better one if it puts the blame on a worker or on the request.
        told = bool(failure.blame) or not failure.retryable or code == codes.REQUEST_FAILED
        raise failure if told or self._deferred is None else self._deferred

    @property
    def _keys(self) -> tuple[str, ...]:
        """The breaker keys of what this attempt uses."""
        prefill, decode = self._choice.prefill, self._choice.decode
        workers = tuple(worker.incarnation for worker in (prefill, decode) if worker is not None)
        return (*workers, pair_key(prefill, decode)) if prefill is not None and decode is not None else workers

    def _succeeded(self) -> None:
        for key in self._keys:
            self._table.breaker.succeeded(key, self._began_s)
