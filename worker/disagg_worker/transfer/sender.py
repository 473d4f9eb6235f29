"""The prefill half of a transfer: one thread a transfer pushes each layer while the engine computes the next.

Bounds: at most one thread for each prefill that runs; what is queued are views of blocks that the engine holds anyway.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from disagg_worker.engine.api import ErrorEvent, TokenEvent
from disagg_worker.transfer import wire
from disagg_worker.transfer.frames import MAX_PAYLOAD_BYTES, FrameError, FrameType, Header
from disagg_worker.transfer.manifest import Digest, commit_payload
from disagg_worker.transfer.ticket import Ticket, begin_proof

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SenderTimeouts:
    """Bounds of every wait of a sender, in seconds."""

    connect_s: float = 3.0
    progress_s: float = 1.0
    peer_s: float = 5.0


@dataclass(frozen=True, slots=True)
class TransferDone:
    """How a transfer ended. `exposed_s` is what was left after the computation: the part nothing hid."""

    kv_bytes: int
    transfer_s: float
    exposed_s: float
    interface: str
    peer: str
    error: ErrorEvent | None = None


@dataclass(frozen=True, slots=True)
class _LayerItem:
    layer: int
    first_block: int
    blocks: tuple[memoryview, ...]


@dataclass(frozen=True, slots=True)
class _CommitItem:
    first_token: TokenEvent
    computed_at_s: float


class TransferFailed(Exception):
    """The peer refused or broke off."""


class TcpKvSender:
    """Implements engine.api.KvSender over one TCP connection. `on_done` is called exactly once, on the sender's thread, unless
    nothing was ever sent (the computation failed first)."""

    def __init__(
        self,
        ticket: Ticket,
        key: bytes,
        incarnation: str,
        source: tuple[str, str],
        on_done: Callable[[TransferDone], None],
        timeouts: SenderTimeouts | None = None,
    ) -> None:
        """`source` is (local address to connect from, name of its interface)."""
        self._ticket = ticket
        self._key = key
        self._incarnation = incarnation
        self._source_host, self._interface = source
        self._on_done = on_done
        self._timeouts = timeouts or SenderTimeouts()
        self._items: queue.SimpleQueue[_LayerItem | _CommitItem | ErrorEvent] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._ended = False

    def layer_ready(self, layer: int, first_block: int, blocks: Sequence[memoryview]) -> None:
        self._items.put(_LayerItem(layer, first_block, tuple(blocks)))
        self._start()

    def commit(self, first_token: TokenEvent) -> None:
        self._items.put(_CommitItem(first_token, time.monotonic()))
        self._start()

    def abort(self, error: ErrorEvent) -> None:
        self._items.put(error)
        with self._lock:
            if self._thread is not None or self._ended:
                return
            self._ended = True
        self._on_done(TransferDone(0, 0.0, 0.0, self._interface, "", error))

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._ended:
                name = f"kv-send-{self._ticket.transfer_id[:8]}"
                self._thread = threading.Thread(target=self._run, name=name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        started_s = time.monotonic()
        try:
            done = self._transfer(started_s)
        except (OSError, FrameError, TransferFailed) as failure:
            message = f"KV transfer to {self._ticket.host}:{self._ticket.port}: {failure or type(failure).__name__}"
            log.warning("transfer %s failed: %s", self._ticket.transfer_id, message)
            elapsed_s = time.monotonic() - started_s
            error = ErrorEvent("transfer_failed", message, retryable=True)
            done = TransferDone(0, elapsed_s, 0.0, self._interface, "", error)
        with self._lock:
            self._ended = True
        self._on_done(done)

    def _connect(self) -> socket.socket:
        address = (self._ticket.host, self._ticket.port)
        source = (self._source_host, 0) if self._source_host else None
        sock = socket.create_connection(address, timeout=self._timeouts.connect_s, source_address=source)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(self._timeouts.peer_s)
        return sock

    def _transfer(self, started_s: float) -> TransferDone:
        digest = Digest()
        with self._connect() as sock:
            raw, header = wire.recv_header(sock)
            if header.type is not FrameType.CHALLENGE:
                raise FrameError(f"expected CHALLENGE, got {header.type.name}")
            challenge = wire.recv_control(sock, raw, header)
            proof = begin_proof(self._key, challenge, self._ticket.transfer_id)
            begin = {"ticket": self._ticket.to_json(), "prefill_incarnation": self._incarnation, "proof": proof}
            wire.send_json(sock, FrameType.BEGIN, begin)
            first_byte_s = time.monotonic()
            while True:
                try:
                    item = self._items.get(timeout=self._timeouts.progress_s)
                except queue.Empty:
                    wire.send_frame(sock, Header(FrameType.PROGRESS))
                    continue
                if isinstance(item, _LayerItem):
                    self._send_layer(sock, item, digest)
                    continue
                if isinstance(item, ErrorEvent):
                    content = {"code": item.code, "message": item.message, "retryable": item.retryable}
                    wire.send_json(sock, FrameType.ERROR, content)
                    return TransferDone(0, time.monotonic() - started_s, 0.0, self._interface, "", item)
                wire.send_json(sock, FrameType.COMMIT, commit_payload(digest, self._ticket, item.first_token))
                self._await_ack(sock)
                now_s = time.monotonic()
                return TransferDone(
                    kv_bytes=digest.payload_bytes,
                    transfer_s=now_s - first_byte_s,
                    exposed_s=now_s - item.computed_at_s,
                    interface=self._interface,
                    peer=f"{self._ticket.host}:{self._ticket.port}",
                )

    def _send_layer(self, sock: socket.socket, item: _LayerItem, digest: Digest) -> None:
        block_bytes = len(item.blocks[0])
        per_frame = max(1, MAX_PAYLOAD_BYTES // block_bytes)
        for start in range(0, len(item.blocks), per_frame):
            part = item.blocks[start : start + per_frame]
            header = Header(FrameType.LAYER, item.layer, digest.frames, item.first_block + start, len(part))
            try:
                crc = wire.send_frame(sock, header, part)
            except ConnectionError:
                # The peer's reason is worth more than "broken pipe": it may lie in our receive buffer.
                self._await_ack(sock)
                raise
            digest.add(crc, block_bytes * len(part))

    def _await_ack(self, sock: socket.socket) -> None:
        raw, header = wire.recv_header(sock)
        payload = wire.recv_control(sock, raw, header)
        if header.type is FrameType.ERROR:
            content = wire.parse_json(payload)
            raise TransferFailed(f"{content.get('code')}: {content.get('message')}")
        if header.type is not FrameType.ACK:
            raise FrameError(f"expected ACK, got {header.type.name}")
