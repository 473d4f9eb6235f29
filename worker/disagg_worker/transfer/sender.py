"""The prefill half of a transfer: a thread per transfer sends each layer while the engine computes
the next one.

A ticket that is bound to this worker is served with frames of version 2 (lanes.py), any other with
those of version 1. Its resources are bounded: there is one thread for each prefill in flight, whose
number the server limits, and a few that help it. The queue holds views of blocks that the engine
holds anyway. Every wait has a timeout, and `cancel` ends all waits.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from disagg_protocol.events import CANCELLED, ErrorEvent, TokenEvent
from disagg_protocol.ticket import Ticket, begin_proof, token_hash
from disagg_wire import codes
from disagg_worker.transfer import frame_socket, lanes
from disagg_worker.transfer.frames import FrameError, FrameType, Header
from disagg_worker.transfer.lanes import Lanes
from disagg_worker.transfer.manifest import Digest, commit_payload
from disagg_worker.transfer.outbox import Commit, Outbox, Part
from disagg_worker.transfer.sender_timeouts import SenderTimeouts, TransferFailed
from disagg_worker.transfer.ucx_report import Moved
from disagg_worker.values.kv_blocks import KvBlocks

log = logging.getLogger(__name__)
# This is below the protocol's limit because the CRC of a frame is computed before its first byte is
# sent.
_FRAME_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class TransferDone:
    """The result of a transfer."""

    kv_bytes: int
    transfer_s: float
    """The time from the first frame to the acknowledgement."""
    exposed_s: float
    """The time from the end of the computation to the acknowledgement, which nothing hides."""
    interface: str
    """The local network interface."""
    peer: str
    """The peer's address, host:port."""
    moved: Moved | None = None
    """What has moved the KV, where that is not the TCP connection itself."""
    error: ErrorEvent | None = None
    """The reason of a failure."""


class TcpKvSender:
    """Implements contract.KvSender over TCP.

    `on_done` is called exactly once, on the sender's thread or, if the computation fails before
    anything is sent, on the thread that calls `abort`.
    """

    def __init__(
        self,
        ticket: Ticket,
        key: bytes,
        incarnation: str,
        tokens: Sequence[int],
        source: tuple[str, str],
        on_done: Callable[[TransferDone], None],
        timeouts: SenderTimeouts | None = None,
        connections: int = 2,
    ) -> None:
        """Prepare a transfer, which starts with the first layer.

        `tokens` are the computed tokens, which the commit describes. `source` is the local address
        to connect from and its interface. At most `connections` are used.
        """
        self._ticket = ticket
        self._key = key
        self._incarnation = incarnation
        self._n_tokens, self._token_hash = len(tokens), token_hash(tokens)
        self._source_host, self._interface = source
        self._on_done = on_done
        self._timeouts = timeouts or SenderTimeouts()
        self._connections = connections
        self._outbox = Outbox(lanes.FRAME_BYTES if ticket.bound else _FRAME_BYTES)
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._socks: list[socket.socket] = []
        self._cancelled = False
        self._ended = False

    @property
    def held_blocks(self) -> int:
        return self._ticket.held_blocks

    @property
    def reads_region(self) -> bool:
        return False

    def layer_ready(self, layer: int, first_block: int, blocks: KvBlocks) -> None:
        self._outbox.layer(layer, first_block, blocks)
        self._start()

    def commit(self, first_token: TokenEvent) -> None:
        self._outbox.end(Commit(first_token, time.monotonic()))
        self._start()

    def abort(self, error: ErrorEvent) -> None:
        self._outbox.end(error)
        with self._lock:
            if self._thread is not None or self._ended:
                return
            self._ended = True
        self._on_done(TransferDone(0, 0.0, 0.0, self._interface, "", error=error))

    def cancel(self) -> None:
        """Break the transfer off (idempotent, any thread); `on_done` is then called at once.

        A transfer that has not started is left to the engine, which aborts it.
        """
        with self._lock:
            self._cancelled = True
            socks = list(self._socks)
        self._outbox.end(CANCELLED)
        for sock in socks:
            frame_socket.hang_up(sock)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._ended:
                name = f"kv-send-{self._ticket.transfer_id[:8]}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        started_s = time.monotonic()
        try:
            done = self._transfer_bound(started_s) if self._ticket.bound else self._transfer(started_s)
        except Exception as failure:  # `on_done` must free the blocks whatever has happened.
            message = f"KV transfer to {self._ticket.host}:{self._ticket.port}: {failure or type(failure).__name__}"
            log.warning("transfer %s failed: %s", self._ticket.transfer_id, message)
            error = CANCELLED if self._cancelled else ErrorEvent(codes.TRANSFER_FAILED, message, retryable=True)
            done = self._not_sent(started_s, error)
        with self._lock:
            self._ended = True
        self._on_done(done)

    def _not_sent(self, started_s: float, error: ErrorEvent) -> TransferDone:
        return TransferDone(0, time.monotonic() - started_s, 0.0, self._interface, "", error=error)

    def _connect(self) -> socket.socket:
        address = (self._ticket.host, self._ticket.port)
        source = (self._source_host, 0) if self._source_host else None
        sock = socket.create_connection(address, timeout=self._timeouts.connect_s, source_address=source)
        frame_socket.keep_alive(sock)
        with self._lock:
            self._socks.append(sock)
            cancelled = self._cancelled
        if cancelled:
            sock.close()
            raise TransferFailed(codes.CANCELLED)
        return sock

    def _transfer(self, started_s: float) -> TransferDone:
        digest = Digest()
        with self._connect() as sock:
            link = frame_socket.FrameSocket(sock, self._timeouts.peer_s)
            raw, header = link.header()
            if header.type is not FrameType.CHALLENGE:
                raise FrameError(f"expected CHALLENGE, got {header.type.name}")
            proof = begin_proof(self._key, link.control(raw, header), self._ticket.transfer_id)
            begin = {"ticket": self._ticket.to_json(), "prefill_incarnation": self._incarnation, "proof": proof}
            link.send_json(FrameType.BEGIN, begin)
            first_byte_s = time.monotonic()
            while isinstance(item := self._next(link), Part):
                header = Header(FrameType.LAYER, item.layer, digest.frames, item.first_block, len(item.blocks.ids))
                with item.blocks.reading(item.layer) as views:
                    digest.add(self._send(link, header, views), item.size_bytes)
            if not isinstance(item, Commit):
                content = {"code": item.code, "message": item.message, "retryable": item.retryable}
                link.send_json(FrameType.ERROR, content)
                return self._not_sent(started_s, item)
            link.send_json(FrameType.COMMIT, self._commit_of(digest, item))
            self._await_ack(link)
            return self._sent(digest, item, first_byte_s)

    def _transfer_bound(self, started_s: float) -> TransferDone:
        sent = self._lanes().run(self._commit_of)
        if isinstance(sent, ErrorEvent):
            return self._not_sent(started_s, sent)
        return self._sent(*sent, started_s)

    def _lanes(self) -> Lanes:
        ends = self._ticket, self._key, self._incarnation
        return Lanes(*ends, self._outbox, self._connect, self._timeouts, self._connections)

    def _commit_of(self, digest: Digest, commit: Commit) -> dict[str, Any]:
        return commit_payload(digest, self._n_tokens, self._token_hash, commit.first_token)

    def _sent(self, digest: Digest, commit: Commit, first_byte_s: float) -> TransferDone:
        now_s = time.monotonic()
        return TransferDone(
            kv_bytes=digest.payload_bytes,
            transfer_s=now_s - first_byte_s,
            exposed_s=now_s - commit.computed_at_s,
            interface=self._interface,
            peer=f"{self._ticket.host}:{self._ticket.port}",
        )

    def _next(self, link: frame_socket.FrameSocket) -> Part | Commit | ErrorEvent:
        """Wait for the engine's next report, and tell the peer meanwhile that this worker lives."""
        while (item := self._outbox.next(self._timeouts.progress_s)) is None:
            self._send(link, Header(FrameType.PROGRESS))
        return item

    def _send(self, link: frame_socket.FrameSocket, header: Header, payload: Sequence[memoryview] = ()) -> int:
        try:
            return link.send(header, payload)
        except ConnectionError:
            # The peer's reason, which may be in the receive buffer, says more than "broken pipe".
            self._await_ack(link)
            raise

    def _await_ack(self, link: frame_socket.FrameSocket) -> None:
        raw, header = link.header()
        payload = link.control(raw, header)
        if header.type is FrameType.ERROR:
            content = frame_socket.parse_json(payload)
            raise TransferFailed(f"{content.get('code')}: {content.get('message')}")
        if header.type is not FrameType.ACK:
            raise FrameError(f"expected ACK, got {header.type.name}")
