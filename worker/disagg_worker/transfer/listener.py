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

from disagg_protocol.ticket import Ticket, TicketError, begin_proof, verify
from disagg_wire import codes
from disagg_worker.engine.contract import Reservation
from disagg_worker.transfer import frame_socket
from disagg_worker.transfer.frames import FrameError, FrameType, Header
from disagg_worker.transfer.manifest import Coverage, verify_commit
from disagg_worker.values.layouts import KvLayout

log = logging.getLogger(__name__)
_LINGER_S = 2.0  # Time for a refused peer to read the reason.


@dataclass(frozen=True, slots=True)
class Received:
    """A verified transfer."""

    first_token: int
    kv_bytes: int
    transfer_s: float
    """The time from the first frame to the commit."""


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

    The connection's thread calls exactly one of the callbacks once, or `on_failed` after an
    `on_commit` that raised.
    """

    ticket: Ticket
    reservation: Reservation
    on_commit: Callable[[Received], None]
    """Takes the reservation over, or raises to refuse it."""
    on_failed: Callable[[str, str], None]
    """Called with code and message after the reservation has been released."""
    phase: Phase = field(default=Phase.WAITING)
    sock: socket.socket | None = field(default=None)
    """The connection while it is received."""


class KvListener:
    """A server for KV transfers on exactly one address.

    At most `max_connections` connections are open; further ones are closed at once.
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
        self._slots = threading.BoundedSemaphore(max_connections)
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
        if phase is Phase.WAITING:
            session.reservation.release()
        elif phase is Phase.RECEIVING and session.sock is not None:
            frame_socket.hang_up(session.sock)

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
            if not self._slots.acquire(blocking=False):
                log.warning("connection from %s closed: too many transfers", peer[0])
                sock.close()
                continue
            threading.Thread(target=self._serve, args=(sock, peer[0]), name="kv-recv", daemon=True).start()

    def _serve(self, sock: socket.socket, peer: str) -> None:
        try:
            with sock:
                self._connection(sock, frame_socket.FrameSocket(sock, self._idle_s), peer)
        except OSError as failure:
            log.info("connection from %s lost: %s", peer, failure or type(failure).__name__)
        except Exception:
            log.exception("connection from %s failed", peer)
        finally:
            self._slots.release()

    def _connection(self, sock: socket.socket, link: frame_socket.FrameSocket, peer: str) -> None:
        try:
            session = self._begin(sock, link)
        except (FrameError, TicketError) as refusal:
            log.warning("transfer from %s refused: %s", peer, refusal)
            self._send_error(link, codes.TICKET_REFUSED, str(refusal))
            return
        try:
            received = self._receive(link, session)
        except Exception as failure:  # The blocks must be freed whatever has happened.
            message = str(failure) or type(failure).__name__
            log.warning("transfer %s from %s failed: %s", session.ticket.transfer_id, peer, message)
            self._fail(link, session, codes.TRANSFER_FAILED, message)
            return
        with self._lock:
            cancelled = session.phase is Phase.ENDED
            session.phase = Phase.ENDED if cancelled else Phase.TAKEN
        if cancelled:
            self._fail(link, session, codes.CANCELLED, "the request was cancelled")
            return
        try:
            session.on_commit(received)
        except Exception as refusal:  # Whatever the engine raises ends this transfer.
            log.warning("transfer %s not taken: %s", session.ticket.transfer_id, refusal)
            self._fail(link, session, "not_accepted", str(refusal))
            return
        link.send_json(FrameType.ACK, {"kv_bytes": received.kv_bytes})

    def _begin(self, sock: socket.socket, link: frame_socket.FrameSocket) -> Session:
        challenge = secrets.token_bytes(32)
        link.send(Header(FrameType.CHALLENGE), [challenge])
        raw, header = link.header()
        if header.type is not FrameType.BEGIN:
            raise FrameError(f"expected BEGIN, got {header.type.name}")
        content = frame_socket.parse_json(link.control(raw, header))
        raw_ticket = content.get("ticket")
        transfer_id = raw_ticket.get("transfer_id") if isinstance(raw_ticket, dict) else None
        proof = content.get("proof")
        # An ID or a proof that is not text must be refused like any other wrong one.
        expected = begin_proof(self._key, challenge, transfer_id if isinstance(transfer_id, str) else "")
        given = proof.encode(errors="replace") if isinstance(proof, str) else b""
        if not hmac.compare_digest(given, expected.encode()):
            raise FrameError("proof: does not match")
        ticket = verify(self._key, raw_ticket)
        with self._lock:
            session = self._waiting.get(ticket.transfer_id)
            if session is None or session.ticket != ticket:
                raise TicketError("ticket: unknown, used, expired or cancelled")
            del self._waiting[ticket.transfer_id]
            session.phase = Phase.RECEIVING
            session.sock = sock
        return session

    def _receive(self, link: frame_socket.FrameSocket, session: Session) -> Received:
        started_s = time.monotonic()
        coverage = Coverage(self._layout, session.reservation.n_blocks)
        while True:
            raw, header = link.header()
            if header.type is FrameType.LAYER:
                coverage.check(header)
                first = header.first_block
                views = [session.reservation.layer_view(header.layer, first + i) for i in range(header.n_blocks)]
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

    def _fail(self, link: frame_socket.FrameSocket, session: Session, code: str, message: str) -> None:
        with self._lock:
            cancelled = session.phase is Phase.ENDED
            session.phase = Phase.ENDED
        session.reservation.release()
        session.on_failed(codes.CANCELLED if cancelled else code, message)
        self._send_error(link, code, message)

    @staticmethod
    def _send_error(link: frame_socket.FrameSocket, code: str, message: str) -> None:
        try:
            link.send_json(FrameType.ERROR, {"code": code, "message": message, "retryable": True})
        except OSError:
            return  # The peer has gone, or it sees the reset.
        link.part(_LINGER_S)
