"""The decode half of a transfer: accepts pushes that a ticket announced and writes them into the reserved blocks.

The receiver does the writing, so nothing can arrive in a block after it was freed. A reservation is released by exactly one
owner: the session while it waits, the connection's thread while it receives, the engine once it took it.
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

from disagg_worker.engine.api import KvLayout, Reservation
from disagg_worker.transfer import frames, wire
from disagg_worker.transfer.frames import FrameError, FrameType, Header
from disagg_worker.transfer.manifest import Coverage, verify_commit
from disagg_worker.transfer.ticket import Ticket, TicketError, begin_proof, verify

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Received:
    """A verified transfer."""

    first_token: int
    kv_bytes: int
    transfer_s: float


@dataclass(slots=True)
class Session:
    """One announced transfer. The callbacks come from the connection's thread, exactly one of them, once.

    `on_commit` takes the reservation over (it may raise to refuse); `on_failed(code, message)` comes after it was released.
    """

    ticket: Ticket
    reservation: Reservation
    on_commit: Callable[[Received], None]
    on_failed: Callable[[str, str], None]
    sock: socket.socket | None = field(default=None)
    cancelled: bool = field(default=False)


class KvListener:
    """Listens on exactly one address. At most `max_connections` at once; further ones are closed at once."""

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
        self._slots = threading.BoundedSemaphore(max_connections)
        self._closed = False
        self._server = socket.create_server((host, port), backlog=128)
        self.host: str = host
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._accept, name="kv-accept", daemon=True).start()

    def expect(self, session: Session) -> None:
        """Announce a transfer: its ticket may now be used, once."""
        with self._lock:
            self._waiting[session.ticket.transfer_id] = session

    def cancel(self, session: Session) -> bool:
        """Forget a transfer. True: it had not begun and its reservation is released now; False: its thread will do that."""
        with self._lock:
            session.cancelled = True
            waiting = self._waiting.pop(session.ticket.transfer_id, None)
            sock = session.sock
        if waiting is not None:
            session.reservation.release()
            return True
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # already gone
        return False

    def begun(self, session: Session) -> bool:
        """The ticket has been used."""
        with self._lock:
            return session.ticket.transfer_id not in self._waiting

    def close(self) -> None:
        """Stop accepting; transfers that run end by themselves within the idle limit."""
        self._closed = True
        try:
            self._server.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._server.close()

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, peer = self._server.accept()
            except OSError:
                if self._closed:
                    return
                log.exception("accept failed")
                time.sleep(0.1)  # out of descriptors: don't spin
                continue
            if not self._slots.acquire(blocking=False):
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock, peer[0]), name="kv-recv", daemon=True).start()

    def _serve(self, sock: socket.socket, peer: str) -> None:
        try:
            with sock:
                sock.settimeout(self._idle_s)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._connection(sock, peer)
        except (OSError, FrameError) as failure:
            log.info("connection from %s refused: %s", peer, failure or type(failure).__name__)
        finally:
            self._slots.release()

    def _connection(self, sock: socket.socket, peer: str) -> None:
        try:
            session = self._begin(sock)
        except (FrameError, TicketError) as refusal:
            log.warning("transfer from %s refused: %s", peer, refusal)
            self._send_error(sock, "ticket_refused", str(refusal))
            return
        try:
            received = self._receive(sock, session)
        except (OSError, FrameError) as failure:
            message = str(failure) or type(failure).__name__
            log.warning("transfer %s from %s failed: %s", session.ticket.transfer_id, peer, message)
            self._fail(sock, session, "cancelled" if session.cancelled else "transfer_failed", message)
            return
        try:
            session.on_commit(received)
        except Exception as refusal:  # the engine's door: whatever it says, this transfer ends here
            log.warning("transfer %s not taken: %s", session.ticket.transfer_id, refusal)
            self._fail(sock, session, "not_accepted", str(refusal))
            return
        wire.send_json(sock, FrameType.ACK, {"kv_bytes": received.kv_bytes})

    def _begin(self, sock: socket.socket) -> Session:
        challenge = secrets.token_bytes(32)
        wire.send_frame(sock, Header(FrameType.CHALLENGE), [challenge])
        raw, header = wire.recv_header(sock)
        if header.type is not FrameType.BEGIN:
            raise FrameError(f"expected BEGIN, got {header.type.name}")
        content = wire.parse_json(wire.recv_control(sock, raw, header))
        raw_ticket = content.get("ticket")
        transfer_id = raw_ticket.get("transfer_id") if isinstance(raw_ticket, dict) else None
        proof = content.get("proof")
        expected = begin_proof(self._key, challenge, str(transfer_id))
        if not isinstance(proof, str) or not hmac.compare_digest(proof.encode(), expected.encode()):
            raise FrameError("proof: does not match")
        ticket = verify(self._key, raw_ticket)
        with self._lock:
            session = self._waiting.pop(ticket.transfer_id, None)
            if session is not None:
                session.sock = sock
        if session is None or session.ticket != ticket:
            raise TicketError("ticket: unknown, used, expired or cancelled")
        return session

    def _receive(self, sock: socket.socket, session: Session) -> Received:
        started_s = time.monotonic()
        coverage = Coverage(self._layout, session.reservation.n_blocks)
        while True:
            raw, header = wire.recv_header(sock)
            if header.type is FrameType.LAYER:
                coverage.check(header)
                self._receive_layer(sock, raw, header, session.reservation)
                coverage.take(header)
                continue
            payload = wire.recv_control(sock, raw, header)
            if header.type is FrameType.COMMIT:
                token = verify_commit(wire.parse_json(payload), coverage, session.ticket, self._vocab_size)
                elapsed_s = time.monotonic() - started_s
                return Received(token, coverage.digest.payload_bytes, elapsed_s)
            if header.type is FrameType.ERROR:
                content = wire.parse_json(payload)
                raise FrameError(f"prefill gave up: {content.get('code')}: {content.get('message')}")
            if header.type is not FrameType.PROGRESS:
                raise FrameError(f"unexpected {header.type.name}")

    @staticmethod
    def _receive_layer(sock: socket.socket, raw: bytes, header: Header, reservation: Reservation) -> None:
        views = [reservation.layer_view(header.layer, header.first_block + i) for i in range(header.n_blocks)]
        for view in views:
            wire.recv_into(sock, view)
        frames.check_crc(raw, views, header.crc32)

    def _fail(self, sock: socket.socket, session: Session, code: str, message: str) -> None:
        session.reservation.release()
        session.on_failed(code, message)
        self._send_error(sock, code, message)

    @staticmethod
    def _send_error(sock: socket.socket, code: str, message: str) -> None:
        try:
            wire.send_json(sock, FrameType.ERROR, {"code": code, "message": message, "retryable": True})
        except OSError:
            pass  # the peer is gone; it sees the reset
