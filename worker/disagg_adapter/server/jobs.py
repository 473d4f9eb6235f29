"""The work of the two internal calls: reserve, hand over, compute, stream.

Every path frees what it holds, whichever side ends first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol

from disagg_adapter.engines.contract import Delta, Engine, EngineFault, HandOver, Work
from disagg_adapter.ledger import Ledger
from disagg_adapter.metrics import Metrics
from disagg_adapter.server.handover_message import HandOverMessage
from disagg_adapter.server.handovers import Expected, HandOverDoor, HandOverSender
from disagg_adapter.server.monitor import Monitor
from disagg_adapter.settings import Settings
from disagg_adapter.transport import Used
from disagg_adapter.work_done import WorkDone
from disagg_protocol.bodies import DecodeRequest, Line, PrefillRequest, error_json, event_json
from disagg_protocol.events import EndEvent, ErrorEvent, TokenEvent
from disagg_protocol.requests import Job
from disagg_protocol.ticket import Ticket, sign, token_hash
from disagg_wire import codes
from disagg_wire.room import Room

log = logging.getLogger(__name__)
ENGINE_LOST = ErrorEvent(codes.INTERNAL, "the engine serves no more", retryable=True)
_ENDS = ("end", "error")
# A READ at less than this is as good as none.
_SLOWEST_BYTES_PER_S = 250e6


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
    """What jobs need of the adapter that runs them."""

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


class _Run(ABC):
    """A job whose lines are made by a task of its own, so that it can be interrupted."""

    def __init__(self, adapter: Host, work: Work, deadline_s: float) -> None:
        self._adapter = adapter
        self._work = work
        self._deadline_s = time.monotonic() + deadline_s
        # Bounded by the number of tokens that one request can emit.
        self._lines: asyncio.Queue[Line] = asyncio.Queue()
        self._index = work.emitted
        self._task: asyncio.Task[None] | None = None

    def start(self) -> Job:
        self._task = asyncio.create_task(self._guarded())
        return Job(self._read(), self.close, lambda error: self._lines.put_nowait(error_json(error)), self._deadline_s)

    def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
        self._adapter.ledger.release(self._work.request_id)

    async def _read(self) -> AsyncIterator[Line]:
        while True:
            try:
                async with asyncio.timeout_at(self._loop_deadline()):
                    line = await self._lines.get()
            except TimeoutError:
                line = error_json(
                    ErrorEvent(codes.DEADLINE_EXCEEDED, "the request's deadline has passed", retryable=False)
                )
            yield line
            if line["type"] in _ENDS:
                return

    def _loop_deadline(self) -> float:
        return asyncio.get_running_loop().time() + self._deadline_s - time.monotonic()

    async def _guarded(self) -> None:
        try:
            await self._work_on()
        except EngineFault as fault:
            log.info("request %s: %s: %s", self._work.request_id, fault.code, fault)
            self._failed(fault)
            self._emit(error_json(ErrorEvent(fault.code, str(fault), retryable=fault.retryable)))
        except Exception:
            log.exception("request %s failed", self._work.request_id)
            self._emit(error_json(ErrorEvent(codes.INTERNAL, "internal error; see the adapter's log", retryable=True)))
        finally:
            self._adapter.ledger.release(self._work.request_id)

    def _emit(self, line: Line) -> None:
        self._lines.put_nowait(line)

    def _failed(self, fault: EngineFault) -> None:
        if fault.code == codes.TRANSFER_FAILED:
            self._adapter.metrics.transfer_failures.labels(fault.code).inc()

    @abstractmethod
    async def _work_on(self) -> None:
        """Do the work. Raises EngineFault."""

    def _tokens(self, delta: Delta, cached_tokens: int | None) -> None:
        """Send the tokens and the end that a piece of the engine's stream holds."""
        now = self._adapter
        for output in delta.outputs:
            cached = cached_tokens if self._index == self._work.emitted else None
            self._emit(event_json(TokenEvent(self._index, output.token, output.logprob, output.top_logprobs, cached)))
            self._index += 1
        if delta.outputs:
            now.monitor.progress()
            now.ledger.grew(self._work.request_id, len(delta.outputs))
            now.work_done.generated(len(delta.outputs), self._work.prompt_tokens + self._index)
        if delta.finish_reason is not None:
            self._emit(event_json(EndEvent(delta.finish_reason)))

    async def _relay(self, deltas: AsyncGenerator[Delta], cached_tokens: int | None = None) -> None:
        async with contextlib.aclosing(deltas):
            async for delta in deltas:
                self._tokens(delta, delta.cached_tokens if cached_tokens is None else cached_tokens)
                if delta.finish_reason is not None:
                    return
        raise EngineFault(codes.INTERNAL, "the engine's stream ended without a reason")


class LocalRun(_Run):
    """Prefill and decode in one engine."""

    async def _work_on(self) -> None:
        adapter, name = self._adapter, self._work.request_id
        adapter.ledger.begun(name, time.monotonic())
        adapter.work_done.prefill_began(name, len(self._work.tokens), time.monotonic())
        self._emit({"type": "accepted", "path": "local", "kv_bytes": 0, "transfer_s": 0.0, "interface": ""})
        try:
            await self._relay(adapter.engine.generate(self._work))
        finally:
            adapter.work_done.prefill_ended(name, time.monotonic(), done=self._index > self._work.emitted)

    def _tokens(self, delta: Delta, cached_tokens: int | None) -> None:
        self._adapter.work_done.prefill_ended(self._work.request_id, time.monotonic(), done=True)
        super()._tokens(delta, cached_tokens)


class RemoteDecode(_Run):
    """Decode KV of another engine, from the ticket to the last token."""

    def __init__(self, adapter: Host, request: DecodeRequest, work: Work) -> None:
        super().__init__(adapter, work, request.deadline_s)
        self._request = request
        self._expected: Expected | None = None

    def _ticket(self) -> Ticket:
        adapter, request = self._adapter, self._request
        return sign(
            adapter.key,
            Ticket(
                transfer_id=secrets.token_hex(16),
                request_id=request.request_id,
                epoch=request.epoch,
                compat=adapter.compat,
                decode_incarnation=adapter.incarnation,
                host=adapter.handover_address[0],
                port=adapter.handover_address[1],
                tokens=len(request.tokens),
                token_hash=token_hash(request.tokens),
                lifetime_s=adapter.settings.ticket_lifetime_s,
            ),
        )

    async def _work_on(self) -> None:
        adapter = self._adapter
        self._expected = expected = adapter.door.expect(self._ticket())
        try:
            self._emit({"type": "ticket", "ticket": expected.ticket.to_json(), "room": adapter.room().to_json()})
            try:
                async with asyncio.timeout(expected.ticket.lifetime_s):
                    message = await expected.arrived
            except TimeoutError:
                raise EngineFault(
                    codes.TICKET_EXPIRED, f"no hand-over came within {expected.ticket.lifetime_s:g} s"
                ) from None
            await self._take_over(expected, message)
        finally:
            adapter.door.forget(expected)

    async def _take_over(self, expected: Expected, message: HandOverMessage) -> None:
        """Start the engine on the hand-over, and relay its stream from the first token on."""
        adapter, work = self._adapter, self._work
        try:
            adapter.engine.check_handover(message.parameters)
        except ValueError as error:
            raise EngineFault(codes.TRANSFER_FAILED, str(error)) from None
        started_s = time.monotonic()
        adapter.ledger.begun(work.request_id, started_s)
        handover = HandOver(dict(message.parameters), message.first_token, message.cached_tokens)
        deltas = adapter.engine.decode(work, handover)
        kv_bytes = adapter.kv_bytes(len(work.tokens))
        async with contextlib.aclosing(deltas):
            first = await self._first(deltas, expected, adapter.transfer_timeout_s(kv_bytes))
            expected.answer(None)
            taken_s = time.monotonic() - started_s
            self._note(first, message.first_token, kv_bytes, taken_s)
            self._tokens(first, message.cached_tokens)
            if first.finish_reason is None:
                await self._relay(deltas)

    async def _first(self, deltas: AsyncGenerator[Delta], expected: Expected, timeout_s: float) -> Delta:
        """Return the first piece of the stream.

        It is not waited for longer than the transfer may take: a frozen peer never ends it. Nor is
        it when prefill gives the hand-over up.
        """
        first = asyncio.ensure_future(anext(deltas))
        either: set[asyncio.Future[Any]] = {first, expected.answered}
        done, _ = await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if first not in done:
            first.cancel()
            await asyncio.wait([first])
            fault = expected.answered.result() if expected.answered.done() else None
            raise fault or EngineFault(codes.TRANSFER_FAILED, f"no KV within {timeout_s:.1f} s")
        try:
            return first.result()
        except StopAsyncIteration:
            raise EngineFault(codes.INTERNAL, "the engine's stream is empty") from None

    def _note(self, first: Delta, expected_token: int | None, kv_bytes: int, taken_s: float) -> None:
        """Tell the router and the metrics that the KV has come."""
        adapter, used = self._adapter, self._adapter.transport()
        adapter.metrics.transfer_bytes.labels("received").inc(kv_bytes)
        adapter.metrics.transfer_seconds.observe(taken_s)
        # With temperature 0, both engines must choose the same token; ties aside.
        comparable = self._work.sampling.temperature == 0 and expected_token is not None and first.outputs
        if comparable and first.outputs[0].token != expected_token:
            adapter.metrics.other_first_tokens.inc()
        self._emit(
            {
                "type": "accepted",
                "path": "remote",
                "kv_bytes": kv_bytes,
                "transfer_s": round(taken_s, 6),
                "interface": used.interface,
                "transport": used.transport,
                "evidence": used.evidence,
            }
        )

    def _failed(self, fault: EngineFault) -> None:
        super()._failed(fault)
        if self._expected is not None:
            self._expected.answer(fault)


class PrefillRun(_Run):
    """Compute a prompt, and hand its KV over."""

    def __init__(self, adapter: Host, request: PrefillRequest, work: Work, ticket: Ticket) -> None:
        super().__init__(adapter, work, request.deadline_s)
        self._ticket = ticket

    async def _work_on(self) -> None:
        adapter, name = self._adapter, self._work.request_id
        adapter.work_done.prefill_began(name, len(self._work.tokens), time.monotonic())
        done = False
        handovers = adapter.engine.prefill(self._work)
        try:
            async with contextlib.aclosing(handovers):
                handover = await anext(handovers)
                adapter.monitor.progress()
                sending = asyncio.create_task(self._send(handover))
                try:
                    # An engine that hands over at the start ends here when decode has the KV.
                    async for _ in handovers:
                        pass
                    adapter.work_done.prefill_ended(name, time.monotonic(), done=True)
                    done = True
                    taken_s = await sending
                finally:
                    if not sending.done():
                        sending.cancel()
                        adapter.metrics.stranded.inc()
                        await asyncio.wait({sending})
        finally:
            adapter.work_done.prefill_ended(name, time.monotonic(), done=done)
        self._transferred(taken_s)

    async def _send(self, handover: HandOver) -> float:
        adapter = self._adapter
        message = HandOverMessage(
            ticket=self._ticket,
            prefill_incarnation=adapter.incarnation,
            engine=adapter.settings.engine,
            parameters=handover.parameters,
            first_token=handover.first_token,
            cached_tokens=handover.cached_tokens,
            age_s=0.0,
        )
        return await adapter.sender.send(message, adapter.settings.lease_s)

    def _transferred(self, taken_s: float) -> None:
        adapter, used = self._adapter, self._adapter.transport()
        kv_bytes = adapter.kv_bytes(len(self._work.tokens))
        adapter.metrics.transfer_bytes.labels("sent").inc(kv_bytes)
        self._emit(
            {
                "type": "transferred",
                "kv_bytes": kv_bytes,
                "transfer_s": round(taken_s, 6),
                "exposed_s": round(taken_s, 6),
                "interface": used.interface,
                "peer": f"{self._ticket.host}:{self._ticket.port}",
            }
        )
        self._emit(event_json(EndEvent("prefilled")))


class PrefillAlone(LocalRun):
    """A request of one token, which needs no decode."""

    def _emit(self, line: Line) -> None:
        if line["type"] != "accepted":  # prefill has no such event
            super()._emit(line)


def transfer_timeout_s(kv_bytes: int, least_s: float) -> float:
    """Return how long decode waits for KV of this size."""
    return least_s + kv_bytes / _SLOWEST_BYTES_PER_S
