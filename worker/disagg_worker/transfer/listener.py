"""The decode half of a transfer: it accepts connections that a ticket has announced and writes the
KV into the reserved blocks.

Since the receiver writes, nothing can arrive in a block after it has been freed. A reservation is
released by exactly one owner: the session while it waits, the connection's thread while it
receives, and the engine once it has taken it.
"""

from __future__ import annotations

import hmac
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from disagg_protocol.ticket import Ticket, TicketError, begin_proof, verify
from disagg_wire import codes
from disagg_wire.connection_slots import ConnectionSlots
from disagg_worker.engine.contract import Reservation
from disagg_worker.transfer import frame_socket, greeting
from disagg_worker.transfer.frames import FrameError, FrameType, Header
from disagg_worker.transfer.greeting import Begin
from disagg_worker.transfer.intake import Intake
from disagg_worker.transfer.landing import Landing
from disagg_worker.transfer.manifest import Coverage, verify_commit
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.seals import Sealer
from disagg_worker.transfer.write_intake import await_release, refuse
from disagg_worker.values.layouts import KvLayout

log = logging.getLogger(__name__)
# A peer that says nothing for so long must not make sequences that run wait for its blocks.
_SILENCE_S = 1.5
_LINGER_S = 2.0  # Time for a refused peer to read the reason.
_Link = frame_socket.FrameSocket | SealedSocket


class Phase(Enum):
    """The phase of a session: WAITING -> RECEIVING -> TAKEN, or ENDED from either of the first two.

    The thread that moves a session out of a phase owns its reservation.
    """

    WAITING = "waiting"
    RECEIVING = "receiving"
    TAKEN = "taken"
    ENDED = "ended"


@dataclass(slots=True)
class Session:
    """One announced transfer.

    A thread of its connections calls exactly one of the callbacks once, or `on_failed` after an
    `on_commit` that raised.
    """

    ticket: Ticket
    reservation: Reservation
    on_commit: Callable[[Received], None]
    """Takes the reservation over, or raises to refuse it."""
    on_failed: Callable[[str, str], None]
    """Called with code and message after the reservation has been released."""
    phase: Phase = field(default=Phase.WAITING)
    socks: list[socket.socket] = field(default_factory=list)
    """The connections while it is received."""
    intake: Intake | None = field(default=None)
    """What the connections of a bound transfer share."""
    landing: Landing | None = None
    """The offer of the blocks to a worker that writes into them, if the ticket has one."""
    since_s: float = field(default_factory=time.monotonic)

    @property
    def heard_s(self) -> float:
        """The time when the peer was last heard of, or when the wait for it began."""
        return self.since_s if self.intake is None else self.intake.heard_s

    def give_back(self) -> bool:
        """Release the blocks, or return False if a worker may still write: they are held then."""
        if self.landing is not None and not self.landing.quiet:
            self.landing.hold()
            return False
        self.keep()
        self.reservation.release()
        return True

    def keep(self) -> None:
        """Note that nobody writes into the blocks any more."""
        if self.landing is not None:
            self.landing.end()


class KvListener:
    """A server for KV transfers on exactly one address.

    At most `max_connections` connections are open. Beyond that, one that has shown no ticket is
    closed for each new one, so that strangers who only connect shut nobody out.
    """

    def __init__(
        self,
        host: str,
        port: int,
        key: bytes,
        layout: KvLayout,
        vocab_size: int,
        idle_s: float = 5.0,
        max_connections: int = 256,
    ) -> None:
        self._key = key
        self._layout = layout
        self._vocab_size = vocab_size
        self._idle_s = idle_s
        self._lock = threading.Lock()
        self._waiting: dict[str, Session] = {}
        self._receiving: dict[str, Session] = {}  # bound ones, which further connections may join
        # The connections of one transfer do not drive out each other.
        self._slots = ConnectionSlots[socket.socket](max_connections, greeting.MAX_CONNECTIONS)
        self._closed = False
        self._server = socket.create_server((host, port), backlog=128)
        self.host: str = host
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name="kv-accept", daemon=True).start()

    def expect(self, session: Session) -> None:
        """Announce a transfer, so that its ticket can be used, once."""
        with self._lock:
            self._waiting[session.ticket.transfer_id] = session

    def cancel(self, session: Session) -> None:
        """Give a transfer up (idempotent).

        If the session waits, the reservation is released now. If it receives, its thread is woken
        and releases the reservation. If the engine has taken the reservation, it stays the
        engine's.
        """
        with self._lock:
            phase, session.phase = session.phase, Phase.TAKEN if session.phase is Phase.TAKEN else Phase.ENDED
            self._waiting.pop(session.ticket.transfer_id, None)
            socks = list(session.socks)
        if phase is Phase.WAITING:
            session.give_back()
        elif phase is Phase.RECEIVING and not (session.intake is not None and session.intake.call_off()):
            for sock in socks:
                frame_socket.hang_up(sock)

    def recall(self) -> None:
        """Give up the newest transfer whose peer is silent: a sequence that runs needs blocks.

        The request goes on elsewhere. Any thread may call this, and often.
        """
        with self._lock:
            sessions = [*self._waiting.values(), *self._receiving.values()]
            before_s = time.monotonic() - _SILENCE_S
            silent = max((s for s in sessions if s.heard_s < before_s), key=lambda s: s.since_s, default=None)
            waits = silent is not None and silent.phase is Phase.WAITING
            if silent is None:
                return
            if waits:
                silent.phase = Phase.ENDED
                del self._waiting[silent.ticket.transfer_id]
            socks = list(silent.socks)
        log.warning("transfer %s is given up: its peer is silent, and blocks are needed", silent.ticket.transfer_id)
        if waits:
            silent.give_back()
            silent.on_failed(codes.TICKET_EXPIRED, "no KV has come, and the blocks were needed")
        for sock in socks:
            frame_socket.hang_up(sock)

    def oldest_s(self) -> float:
        """Return the age of the oldest transfer that is still to come, or 0."""
        with self._lock:
            since_s = [s.since_s for s in (*self._waiting.values(), *self._receiving.values())]
        return time.monotonic() - min(since_s) if since_s else 0.0

    def begun(self, session: Session) -> bool:
        """Return whether the session has left the phase WAITING, as it does when its ticket is
        used.
        """
        with self._lock:
            return session.phase is not Phase.WAITING

    def close(self) -> None:
        """Stop accepting connections; running transfers end by themselves within the idle limit."""
        self._closed = True
        frame_socket.hang_up(self._server)
        self._server.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, peer = self._server.accept()
            except OSError:
                if self._closed:
                    return
                log.exception("accept failed")
                time.sleep(0.1)  # The process may be out of descriptors: do not spin.
                continue
            with self._lock:
                victim = self._slots.enter(sock, peer[0])
            if victim is not None:
                log.warning("a connection without a ticket is closed for one from %s: there are too many", peer[0])
                frame_socket.hang_up(victim)
            if victim is sock:
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock, peer[0]), name="kv-recv", daemon=True).start()

    def _serve(self, sock: socket.socket, peer: str) -> None:
        try:
            with sock:
                frame_socket.keep_alive(sock)
                self._connection(sock, frame_socket.FrameSocket(sock, self._idle_s), peer)
        except OSError as failure:
            log.info("connection from %s lost: %s", peer, failure or type(failure).__name__)
        except Exception:
            log.exception("connection from %s failed", peer)
        finally:
            with self._lock:
                self._slots.leave(sock)

    def _connection(self, sock: socket.socket, link: frame_socket.FrameSocket, peer: str) -> None:
        try:
            content, challenge = self._greet(link)
            if greeting.is_bound(content):
                begin = greeting.verify_begin(self._key, challenge, content)
                session, intake = self._join(begin, sock)
            else:
                session = self._use(self._ticket_of(content, challenge), sock)
        except (FrameError, TicketError) as refusal:
            log.warning("transfer from %s refused: %s", peer, refusal)
            self._send_error(link, codes.TICKET_REFUSED, str(refusal))
            return
        if greeting.is_bound(content):
            self._receive_bound(begin, session, intake, sock, peer)
            return
        try:
            received = self._receive(link, session)
        except Exception as failure:  # The blocks must be freed whatever has happened.
            message = str(failure) or type(failure).__name__
            log.warning("transfer %s from %s failed: %s", session.ticket.transfer_id, peer, message)
            self._fail(link, session, codes.TRANSFER_FAILED, message)
            return
        self._deliver(link, session, received)

    def _deliver(self, link: _Link, session: Session, received: Received) -> None:
        """Hand a verified transfer over to the engine, and acknowledge it."""
        with self._lock:
            cancelled = session.phase is Phase.ENDED
            session.phase = Phase.ENDED if cancelled else Phase.TAKEN
            self._receiving.pop(session.ticket.transfer_id, None)
        if cancelled:
            self._fail(link, session, codes.CANCELLED, "the request was cancelled")
            return
        session.keep()
        try:
            session.on_commit(received)
        except Exception as refusal:  # Whatever the engine raises ends this transfer.
            log.warning("transfer %s not taken: %s", session.ticket.transfer_id, refusal)
            self._fail(link, session, "not_accepted", str(refusal))
            return
        link.send_json(FrameType.ACK, {"kv_bytes": received.kv_bytes})

    def _greet(self, link: frame_socket.FrameSocket) -> tuple[dict[str, Any], bytes]:
        """Send CHALLENGE, and return the content of BEGIN and the challenge."""
        challenge = secrets.token_bytes(32)
        link.send(Header(FrameType.CHALLENGE), [challenge])
        raw, header = link.header()
        if header.type is not FrameType.BEGIN:
            raise FrameError(f"expected BEGIN, got {header.type.name}")
        return frame_socket.parse_json(link.control(raw, header)), challenge

    def _ticket_of(self, content: dict[str, Any], challenge: bytes) -> Ticket:
        """Return the ticket of a BEGIN of version 1, which no bound ticket may come with."""
        raw_ticket = content.get("ticket")
        transfer_id = raw_ticket.get("transfer_id") if isinstance(raw_ticket, dict) else None
        proof = content.get("proof")
        # An ID or a proof that is not text must be refused like any other wrong one.
        expected = begin_proof(self._key, challenge, transfer_id if isinstance(transfer_id, str) else "")
        given = proof.encode(errors="replace") if isinstance(proof, str) else b""
        if not hmac.compare_digest(given, expected.encode()):
            raise FrameError("proof: does not match")
        ticket = verify(self._key, raw_ticket)
        if ticket.bound:
            raise TicketError("ticket: is bound to a worker, and needs frames of version 2")
        return ticket

    def _use(self, ticket: Ticket, sock: socket.socket) -> Session:
        """Use a ticket, once. Raises TicketError."""
        with self._lock:
            session = self._waiting.get(ticket.transfer_id)
            if session is None or session.ticket != ticket:
                raise TicketError("ticket: unknown, used, expired or cancelled")
            del self._waiting[ticket.transfer_id]
            session.phase = Phase.RECEIVING
            session.socks.append(sock)
            self._slots.engage(sock)
        return session

    def _join(self, begin: Begin, sock: socket.socket) -> tuple[Session, Intake]:
        """Use a bound ticket, or add a connection to the transfer that uses it.

        Raises TicketError.
        """
        ticket = begin.ticket
        with self._lock:
            session = self._receiving.get(ticket.transfer_id) or self._waiting.get(ticket.transfer_id)
            if session is None or session.ticket != ticket or session.phase is Phase.ENDED:
                raise TicketError("ticket: unknown, used, expired or cancelled")
            if session.intake is None:
                del self._waiting[ticket.transfer_id]
                self._receiving[ticket.transfer_id] = session
                session.phase = Phase.RECEIVING
                blocks = session.reservation, self._layout, self._vocab_size
                session.intake = Intake(ticket, *blocks, self._idle_s, session.landing)
            session.intake.join(begin.connection, sock)
            session.socks.append(sock)
            self._slots.engage(sock)
            return session, session.intake

    def _receive_bound(self, begin: Begin, session: Session, intake: Intake, sock: socket.socket, peer: str) -> None:
        """Receive over one connection of a bound transfer."""
        keys, integrity = begin.keys, begin.ticket.integrity
        link = SealedSocket(sock, self._idle_s, Sealer(keys.to_prefill, integrity), Sealer(keys.to_decode, integrity))
        try:
            received = intake.receive(begin.connection, link, keys.blocks)
        except Exception as failure:  # The blocks must be freed whatever has happened.
            message = str(failure) or type(failure).__name__
            log.warning("transfer %s from %s failed: %s", session.ticket.transfer_id, peer, message)
            intake.fail(message)
            if intake.leave(begin.connection):
                self._fail(link, session, codes.TRANSFER_FAILED, intake.failure)
            else:
                self._send_error(link, codes.TRANSFER_FAILED, intake.failure)
            return
        if received is not None:
            self._deliver(link, session, received)

    def _receive(self, link: frame_socket.FrameSocket, session: Session) -> Received:
        started_s = time.monotonic()
        coverage = Coverage(self._layout, session.reservation.n_blocks)
        while True:
            raw, header = link.header()
            if header.type is FrameType.LAYER:
                coverage.check(header)
                with session.reservation.blocks(header.first_block, header.n_blocks).writing(header.layer) as views:
                    link.into(raw, header, views)
                coverage.take(header)
                continue
            payload = link.control(raw, header)
            if header.type is FrameType.COMMIT:
                token = verify_commit(frame_socket.parse_json(payload), coverage, session.ticket, self._vocab_size)
                elapsed_s = time.monotonic() - started_s
                return Received(token, coverage.digest.payload_bytes, elapsed_s)
            if header.type is FrameType.ERROR:
                content = frame_socket.parse_json(payload)
                raise FrameError(f"prefill gave up: {content.get('code')}: {content.get('message')}")
            if header.type is not FrameType.PROGRESS:
                raise FrameError(f"unexpected {header.type.name}")

    def _fail(self, link: _Link, session: Session, code: str, message: str) -> None:
        with self._lock:
            cancelled = session.phase is Phase.ENDED
            session.phase = Phase.ENDED
            self._receiving.pop(session.ticket.transfer_id, None)
        free = session.give_back()
        session.on_failed(codes.CANCELLED if cancelled else code, message)
        if free or session.landing is None or not isinstance(link, SealedSocket):
            self._send_error(link, code, message)
            return
        refuse(link, code, message)
        await_release(link, session.landing)

    @staticmethod
    def _send_error(link: _Link, code: str, message: str) -> None:
        try:
            link.send_json(FrameType.ERROR, {"code": code, "message": message, "retryable": True})
        except OSError:
            return  # The peer has gone, or it sees the reset.
        link.part(_LINGER_S)
