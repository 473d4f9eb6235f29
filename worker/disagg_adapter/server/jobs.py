"""The work of the two internal calls: reserve, hand over, compute, stream.

Every path frees what it holds, whichever side ends first.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncGenerator
from typing import Any

from disagg_adapter.engines.contract import Delta, EngineFault, HandOver, Work
from disagg_adapter.server.handover_message import HandOverMessage
from disagg_adapter.server.handovers import Expected
from disagg_adapter.server.run import Host, Run, end
from disagg_protocol.bodies import DecodeRequest, Line, PrefillRequest, event_json
from disagg_protocol.errors import InvalidInput
from disagg_protocol.events import EndEvent
from disagg_protocol.ticket import Ticket, sign, token_hash
from disagg_wire import codes, series

# A READ at less than this is as good as none.
_SLOWEST_BYTES_PER_S = 250e6


class LocalRun(Run):
    """Prefill and decode in one engine."""

    async def _work_on(self) -> None:
        adapter, name = self._adapter, self._work.request_id
        adapter.ledger.begun(name, time.monotonic())
        adapter.work_done.prefill_began(name, len(self._work.tokens), time.monotonic())
        self._emit({"type": "accepted", "path": "local", "kv_bytes": 0, "transfer_s": 0.0, "interface": ""})
        try:
            await self._relay(adapter.engine.generate(self._work))
        finally:
            adapter.work_done.prefill_ended(name, time.monotonic(), done=self._index > self._start_index)

    def _tokens(self, delta: Delta, cached_tokens: int | None) -> None:
        if self._index == self._start_index:
            self._adapter.work_done.prefill_ended(self._work.request_id, time.monotonic(), done=True)
        super()._tokens(delta, cached_tokens)


class RemoteDecode(Run):
    """Decode KV of another engine, from the ticket to the last token."""

    def __init__(self, adapter: Host, request: DecodeRequest, work: Work) -> None:
        super().__init__(adapter, work, request.deadline_s)
        self._request = request

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
                # What arrives in time is then read before the lease ends, whatever held it up.
                lifetime_s=min(adapter.settings.ticket_lifetime_s, adapter.settings.lease_s / 2),
            ),
        )

    async def _work_on(self) -> None:
        adapter = self._adapter
        expected = adapter.door.expect(self._ticket())
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
        except EngineFault as fault:
            await adapter.monitor.look()  # prefill tells the router of it as well
            expected.answer(fault)
            raise
        finally:
            adapter.door.forget(expected)

    async def _take_over(self, expected: Expected, message: HandOverMessage) -> None:
        """Start the engine on the hand-over, and relay its stream from the first token on."""
        adapter, work = self._adapter, self._work
        try:
            adapter.engine.check_handover(message.parameters)
        except InvalidInput as error:
            raise EngineFault(codes.TRANSFER_FAILED, f"the hand-over is refused: {error}") from None
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
            self._tokens(first, first.cached_tokens if message.cached_tokens is None else message.cached_tokens)
            if first.finish_reason is None:
                await self._relay(deltas)

    async def _first(self, deltas: AsyncGenerator[Delta], expected: Expected, timeout_s: float) -> Delta:
        """Return the first piece of the stream.

        It is not waited for longer than the transfer may take: a frozen peer never ends it. Nor is
        it when prefill gives the hand-over up.
        """
        first = asyncio.ensure_future(anext(deltas))
        either: set[asyncio.Future[Any]] = {first, expected.answered}
        try:
            done, _ = await asyncio.wait(either, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if first not in done:
                fault = expected.answered.result() if expected.answered.done() else None
                raise fault or EngineFault(codes.TRANSFER_FAILED, f"no KV within {timeout_s:.1f} s")
            return first.result()
        except StopAsyncIteration:
            raise EngineFault(codes.INTERNAL, "the engine's stream is empty") from None
        finally:
            # A generator that is waited for cannot be closed.
            await end(first)

    def _note(self, first: Delta, expected_token: int | None, kv_bytes: int, taken_s: float) -> None:
        """Tell the router and the metrics that the KV has come."""
        adapter, used = self._adapter, self._adapter.transport()
        adapter.metrics.transfer_bytes.labels(series.RECEIVED).inc(kv_bytes)
        adapter.metrics.transfer_seconds.labels(series.RECEIVED).observe(taken_s)
        # With temperature 0, both engines must choose the same token; ties aside.
        comparable = self._work.sampling.temperature == 0 and expected_token is not None and first.outputs
        if comparable and first.outputs[0].token != expected_token:
            adapter.metrics.other_first_tokens.inc()
        self._emit(
            {
                "type": "accepted",
                "path": "remote",
                "kv_bytes": kv_bytes or None,  # a model whose files do not tell it
                "transfer_s": round(taken_s, 6),
                "interface": used.interface,
                "transport": used.transport,
                "evidence": used.evidence,
            }
        )


class PrefillRun(Run):
    """Compute a prompt, and hand its KV over."""

    direction = series.SENT

    def __init__(self, adapter: Host, request: PrefillRequest, work: Work, ticket: Ticket) -> None:
        super().__init__(adapter, work, request.deadline_s)
        self._ticket = ticket

    async def _work_on(self) -> None:
        adapter, name = self._adapter, self._work.request_id
        adapter.work_done.prefill_began(name, len(self._work.tokens), time.monotonic())
        handovers = adapter.engine.prefill(self._work)
        try:
            async with contextlib.aclosing(handovers):
                handover = await anext(handovers, None)
                if handover is None:
                    raise EngineFault(codes.INTERNAL, "the engine has ended without a hand-over")
                adapter.monitor.progress()
                taken_s = await self._hand_over(handover, handovers)
        finally:
            adapter.work_done.prefill_ended(name, time.monotonic(), done=False)
        self._transferred(taken_s)

    async def _hand_over(self, handover: HandOver, engine: AsyncGenerator[HandOver]) -> float:
        """Send the hand-over and see the engine's own work to its end.

        Either fails if the other does. Returns the seconds until decode had the KV.
        """
        sending = asyncio.create_task(self._send(handover, time.monotonic()))
        ending = asyncio.create_task(self._see_out(engine))
        try:
            await asyncio.wait({sending, ending}, return_when=asyncio.FIRST_EXCEPTION)
            for task in (ending, sending):
                if task.done():
                    task.result()
            return sending.result()
        except BaseException:
            self._adapter.metrics.stranded.inc()
            raise
        finally:
            await end(sending, ending)

    async def _see_out(self, engine: AsyncGenerator[HandOver]) -> None:
        # An engine that hands over at the start ends when decode has the KV.
        async for _ in engine:
            pass
        adapter = self._adapter
        adapter.monitor.progress()
        adapter.work_done.prefill_ended(self._work.request_id, time.monotonic(), done=True)

    async def _send(self, handover: HandOver, since_s: float) -> float:
        adapter = self._adapter
        message = HandOverMessage(
            ticket=self._ticket,
            prefill_incarnation=adapter.incarnation,
            engine=adapter.settings.engine,
            parameters=handover.parameters,
            first_token=handover.first_token,
            cached_tokens=handover.cached_tokens,
            age_s=time.monotonic() - since_s,
        )
        taken_s = await adapter.sender.send(message, adapter.settings.lease_s)
        handover.taken()
        return taken_s

    def _transferred(self, taken_s: float) -> None:
        adapter, used = self._adapter, self._adapter.transport()
        kv_bytes = adapter.kv_bytes(len(self._work.tokens))
        adapter.metrics.transfer_bytes.labels(series.SENT).inc(kv_bytes)
        adapter.metrics.transfer_seconds.labels(series.SENT).observe(taken_s)
        self._emit(
            {
                "type": "transferred",
                "kv_bytes": kv_bytes or None,
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
