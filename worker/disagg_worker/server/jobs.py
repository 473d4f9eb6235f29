"""The work of the two internal calls: reserve, transfer, compute, stream.

Every path frees what it holds, whichever side ends first.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, replace

from disagg_protocol.bodies import DecodeRequest, Line, PrefillRequest, error_json, event_json
from disagg_protocol.errors import NoCapacity
from disagg_protocol.event_stream import EventQueue
from disagg_protocol.events import EndEvent, ErrorEvent, TokenEvent
from disagg_protocol.requests import Job
from disagg_protocol.ticket import Ticket, check_held, prefix_hash, sign, token_hash
from disagg_wire import codes, series
from disagg_wire.integrity import MAC, Integrity
from disagg_worker.engine.contract import DecodeHandle, Engine, PrefillHandle, Reservation
from disagg_worker.server.kv_usage import KvUsage
from disagg_worker.server.metrics import Metrics
from disagg_worker.transfer.landing import Landing
from disagg_worker.transfer.listener import KvListener, Session
from disagg_worker.transfer.nixl_side import NixlSide
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sender import TcpKvSender, TransferDone
from disagg_worker.transfer.writes import NixlKvSender


@dataclass(frozen=True, slots=True)
class Node:
    """The parts of the process that the work needs."""

    engine: Engine
    listener: KvListener
    metrics: Metrics
    key: bytes
    """The cluster key."""
    compat: str
    """The compatibility hash of model and cache."""
    incarnation: str
    """The worker's incarnation (docs/protocol.md)."""
    usage: KvUsage
    """What moves its KV."""
    interface: str
    """The network interface that has the address `listener.host`."""
    ticket_lifetime_s: float
    """The seconds after which an unused ticket expires."""
    integrity: Integrity = MAC
    """The check that the tickets of this worker ask for."""
    connections: int = 2
    """The most connections of a transfer that is sent."""
    nixl: NixlSide | None = None
    """What it has for transfers by NIXL."""

    def open_sender(
        self, request: PrefillRequest, ticket: Ticket, on_done: Callable[[TransferDone], None]
    ) -> TcpKvSender:
        """Return the sender for a ticket: it writes by itself if that is offered, and has not just
        failed.
        """
        source = (self.listener.host, self.interface)
        ends = ticket, self.key, self.incarnation, request.tokens, source, on_done
        if ticket.offer and self.nixl is not None and not self.nixl.writer.avoids(ticket.decode_incarnation):
            nixl, layout = self.nixl, self.engine.layout
            return NixlKvSender(*ends, writer=nixl.writer, layout=layout, place=nixl.place)
        return TcpKvSender(*ends, connections=self.connections)


_END = (EndEvent, ErrorEvent)


def _timed_out() -> Line:
    return error_json(ErrorEvent(codes.DEADLINE_EXCEEDED, "the request's deadline has passed", retryable=False))


async def _relay(events: EventQueue, deadline_s: float) -> AsyncIterator[Line]:
    """Yield events as lines, up to the one that ends the request."""
    while True:
        try:
            event = await events.get(deadline_s - time.monotonic())
        except TimeoutError:
            yield _timed_out()
            return
        yield event_json(event)
        if isinstance(event, _END):
            return


def decode_local(node: Node, request: DecodeRequest, due_s: float | None, most_missing: int | None = None) -> Job:
    """Start to prefill and decode here; the first token is due at `due_s`.

    With `most_missing`, only if so few tokens are missing here. Raises NoCapacity or InvalidInput.
    """
    events = EventQueue()
    params = request.sampling.to_params()
    deadline_s = time.monotonic() + request.deadline_s
    handle = node.engine.generate(
        request.request_id, request.tokens, request.prompt_tokens, params, events, request.tenant, due_s, most_missing
    )

    async def lines() -> AsyncIterator[Line]:
        yield {"type": "accepted", "path": "local", "kv_bytes": 0, "transfer_s": 0.0, "interface": ""}
        async for line in _relay(events, deadline_s):
            yield line

    return Job(lines(), handle.cancel, events.put, deadline_s)


def decode_rest(node: Node, request: DecodeRequest, due_s: float | None) -> Job | None:
    """Start to prefill and decode here although the request came for KV of another worker, if the
    start of its prompt is here, and what is missing is little; otherwise return None.
    """
    if not request.local_up_to_tokens:
        return None
    try:
        return decode_local(node, request, due_s, request.local_up_to_tokens)
    except NoCapacity:
        return None


def _issue(node: Node, request: DecodeRequest, reservation: Reservation) -> tuple[Ticket, Landing | None]:
    """Return the ticket, and the offer of the blocks if there is one."""
    offer, landing = "", None
    if node.nixl is not None and request.prefill_transports and request.prefill_incarnation:
        ends = request.prefill_transports, request.prefill_incarnation
        if (offered := node.nixl.landings.offer(*ends, reservation)) is not None:
            offer, landing = offered[0].encode(), offered[1]
    size, held = node.engine.layout.block_size_tokens, reservation.held_blocks
    ticket = Ticket(
        transfer_id=secrets.token_hex(16),
        request_id=request.request_id,
        epoch=request.epoch,
        compat=node.compat,
        decode_incarnation=node.incarnation,
        host=node.listener.host,
        port=node.listener.port,
        tokens=len(request.tokens),
        token_hash=token_hash(request.tokens),
        lifetime_s=node.ticket_lifetime_s,
        prefill_incarnation=request.prefill_incarnation or "",
        integrity=node.integrity if request.prefill_incarnation else "",
        held_blocks=held,
        held_hash=prefix_hash(node.compat, request.adapter or "", request.tokens, size, held),
        offer=offer,
    )
    return sign(node.key, ticket), landing


class _RemoteDecode:
    """A request to decode KV from another worker, from its ticket to its last token."""

    def __init__(self, node: Node, request: DecodeRequest, reservation: Reservation) -> None:
        self._node = node
        self._request = request
        self.events = EventQueue()
        self._handle: DecodeHandle | None = None
        self._reservation = reservation
        self._lock = threading.Lock()
        self._closed = False
        self.ticket, landing = _issue(node, request, reservation)
        self._session = Session(self.ticket, reservation, self._on_commit, self._on_failed, landing=landing)
        node.listener.expect(self._session)

    def _on_commit(self, received: Received) -> None:
        """Add the verified KV to the batch, on the listener's thread."""
        tokens = [*self._request.tokens, received.first_token]
        params = self._request.sampling.to_params()
        moved = self._node.usage.received(received.moved, self._request.prefill_incarnation or "")
        self.events.put(replace(received, moved=moved))
        prompt_tokens = self._request.prompt_tokens
        handle = self._node.engine.decode(
            self._reservation, tokens, prompt_tokens, params, self.events, self._request.tenant
        )
        with self._lock:
            self._handle = handle
            closed = self._closed
        if closed:
            handle.cancel()
        self._count(received)

    def _count(self, received: Received) -> None:
        held, layout = self._reservation.held_blocks, self._node.engine.layout
        held_tokens = held * layout.block_size_tokens
        came = len(self._request.tokens) - held_tokens
        self._node.metrics.received(received.kv_bytes, received.transfer_s, came)
        self._node.metrics.saved(held, held_tokens * layout.bytes_per_token)

    def _on_failed(self, code: str, message: str) -> None:
        self._node.metrics.transfer_failures.labels(series.RECEIVED, code).inc()
        code = code if code == codes.TICKET_EXPIRED else codes.TRANSFER_FAILED
        self.events.put(ErrorEvent(code, message, retryable=True))

    async def lines(self, deadline_s: float) -> AsyncIterator[Line]:
        yield {"type": "ticket", "ticket": self.ticket.to_json(), "room": asdict(self._node.engine.load().room)}
        first = await self._first(deadline_s)
        if not isinstance(first, Received):
            yield event_json(first)
            return
        yield {
            "type": "accepted",
            "path": "remote",
            "kv_bytes": first.kv_bytes,
            "transfer_s": round(first.transfer_s, 6),
            **({} if self._request.resume is None else {"first_token": first.first_token}),
            **self._node.usage.words(first.moved),
        }
        async for line in _relay(self.events, deadline_s):
            yield line

    async def _first(self, deadline_s: float) -> Received | ErrorEvent:
        """Wait for the commit, or for the reason why there is none.

        The lifetime of the ticket bounds the wait for its use, the idle limit that for the
        transfer.
        """
        lifetime_s = min(self.ticket.lifetime_s, deadline_s - time.monotonic())
        try:
            event: Received | ErrorEvent = await self.events.get(lifetime_s)
        except TimeoutError:
            if not self._node.listener.begun(self._session):
                self._node.metrics.transfer_failures.labels(series.RECEIVED, codes.TICKET_EXPIRED).inc()
                return ErrorEvent(codes.TICKET_EXPIRED, f"no KV came within {lifetime_s:g} s", retryable=True)
            try:
                event = await self.events.get(deadline_s - time.monotonic())
            except TimeoutError:
                return ErrorEvent(codes.DEADLINE_EXCEEDED, "the request's deadline has passed", retryable=False)
        return event

    def close(self) -> None:
        self._node.listener.cancel(self._session)
        with self._lock:
            self._closed = True
            handle = self._handle
        if handle is not None:
            handle.cancel()


def decode_remote(node: Node, request: DecodeRequest) -> Job:
    """Reserve blocks and return the job that hands out a ticket, waits for the KV and decodes.

    Raises NoCapacity or InvalidInput.
    """
    emitted = len(request.tokens) - request.prompt_tokens
    total = len(request.tokens) + request.sampling.max_new_tokens - emitted
    deadline_s = time.monotonic() + request.deadline_s
    # A prefill worker that needs frames of version 1 sends everything.
    known = request.tokens if request.prefill_incarnation else ()
    reservation = node.engine.reserve(request.request_id, len(request.tokens), total, known, request.tenant)
    decode = _RemoteDecode(node, request, reservation)
    return Job(decode.lines(deadline_s), decode.close, decode.events.put, deadline_s)


class _Prefill:
    """A request to prefill, from the queue to the acknowledgement of its KV."""

    def __init__(self, node: Node, request: PrefillRequest, ticket: Ticket | None, due_s: float | None) -> None:
        self._node = node
        self.events = EventQueue()
        self._lock = threading.Lock()
        self._released = False
        self._handle: PrefillHandle | None = None
        self._sender: TcpKvSender | None = None
        if ticket is not None:
            self._sender = node.open_sender(request, ticket, self._on_done)
        params = request.sampling.to_params()
        tokens, prompt_tokens = request.tokens, request.prompt_tokens
        handle = node.engine.prefill(
            request.request_id, tokens, prompt_tokens, params, self.events, self._sender, request.tenant, due_s
        )
        with self._lock:
            self._handle = handle
            released = self._released
        if released:
            handle.release()

    def _release(self) -> None:
        """Release the blocks, which nobody reads any more.

        If the sender is done before the handle is known, the constructor releases them.
        """
        with self._lock:
            self._released = True
            handle = self._handle
        if handle is not None:
            handle.release()

    def _on_done(self, done: TransferDone) -> None:
        """Release the blocks when the transfer has been acknowledged or has failed, on the sender's
        thread.
        """
        self._release()
        metrics = self._node.metrics
        if done.error is None:
            metrics.transfer_bytes.labels(series.SENT).inc(done.kv_bytes)
            metrics.transfer_seconds.labels(series.SENT).observe(done.transfer_s)
            metrics.transfer_exposed_seconds.observe(done.exposed_s)
            metrics.links.moved(series.SENT, done.transfer_s)
            done = replace(done, moved=self._node.usage.sent(done.moved, done.peer))
        elif done.error.code == codes.TRANSFER_FAILED:
            metrics.transfer_failures.labels(series.SENT, done.error.code).inc()
        self.events.put(done)

    async def lines(self, deadline_s: float) -> AsyncIterator[Line]:
        """Yield the token, `transferred` and `end`.

        The engine's end event is held back until the transfer has ended too.
        """
        ended: EndEvent | ErrorEvent | None = None
        transferred = self._sender is None
        while ended is None or not (transferred or isinstance(ended, ErrorEvent)):
            try:
                event = await self.events.get(deadline_s - time.monotonic())
            except TimeoutError:
                yield _timed_out()
                return
            if isinstance(event, TokenEvent):
                yield event_json(event)
            elif isinstance(event, TransferDone):
                transferred = True
                if event.error is not None and event.error.code == codes.TRANSFER_FAILED:
                    ended = event.error
                elif event.error is None:
                    yield _transferred(event) | self._node.usage.words(event.moved)
            elif ended is None:
                ended = event
        yield event_json(ended)

    def close(self) -> None:
        """Stop computing and sending.

        The sender's `on_done` releases the blocks; without a sender they are released here.
        """
        if self._handle is not None:
            self._handle.cancel()
        if self._sender is not None:
            self._sender.cancel()
        else:
            self._release()


def _transferred(done: TransferDone) -> Line:
    return {
        "type": "transferred",
        "kv_bytes": done.kv_bytes,
        "transfer_s": round(done.transfer_s, 6),
        "exposed_s": round(done.exposed_s, 6),
        "peer": done.peer,
    }


def prefill(node: Node, request: PrefillRequest, ticket: Ticket | None, due_s: float | None) -> Job:
    """Start to compute a prompt and to send its KV; the first token is due at `due_s`.

    Raises NoCapacity, InvalidInput or TicketError.
    """
    if ticket is not None:
        size = node.engine.layout.block_size_tokens
        check_held(ticket, node.compat, request.adapter or "", request.tokens, size)
    deadline_s = time.monotonic() + request.deadline_s
    if request.decode_room is not None:
        node.engine.limit_prefill(request.decode_room.to_room())
    job = _Prefill(node, request, ticket, due_s)
    return Job(job.lines(deadline_s), job.close, job.events.put, deadline_s)
