"""The prefill half of a transfer by NIXL: it writes into the memory of decode, block by block, and
tells over an authenticated connection what it has written.

Decode holds its blocks until this end says that it writes no more. After a failure, `settle` waits
for the writes that are under way, and says so.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from disagg_protocol.events import ErrorEvent
from disagg_wire import codes
from disagg_worker.transfer import frame_socket
from disagg_worker.transfer.frames import FrameError, FrameType, Header
from disagg_worker.transfer.lanes import Lanes
from disagg_worker.transfer.manifest import Digest, combined
from disagg_worker.transfer.nixl_agent import UCX_LOG
from disagg_worker.transfer.nixl_peers import Target, Writer
from disagg_worker.transfer.offers import decode_offer
from disagg_worker.transfer.outbox import Commit, Outbox, Part
from disagg_worker.transfer.reach import Place
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.seals import block_tag
from disagg_worker.transfer.sender import TcpKvSender, TransferDone
from disagg_worker.transfer.sender_timeouts import NixlFailed, TransferFailed
from disagg_worker.transfer.ucx_report import Moved
from disagg_worker.values.kv_blocks import KvBlocks
from disagg_worker.values.layouts import KvLayout

log = logging.getLogger(__name__)
# What one write moves, which must be done within the time of a peer and at the least rate.
WRITE_BYTES = 32 << 20
_LEAST_BYTES_PER_S = 16 << 20
_MOST_BLOCKS = 2048  # of one write, whose tags go into one frame
_AT_ONCE = 2
# The first write to a peer opens the connections.
_CONNECT_S = 10.0
_POLL_S = 0.0005
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True)
class _Write:
    handle: Any
    first_block: int
    n_blocks: int
    tags: bytes
    size_bytes: int
    deadline_s: float


class Writes(Lanes):
    """The one connection of a transfer, and its writes.

    Each part is of the last layer, so that the whole blocks are final. If the peer cannot be
    reached by NIXL, they are sent over the connection.
    """

    writer: Writer
    layout: KvLayout
    place: Place
    moved: Moved | None = None
    """What has moved the blocks, once something has."""
    _target: Target | None = None
    _link: SealedSocket | None = None
    _sock: socket.socket | None = None
    _acknowledged = False
    _broken = False

    @property
    def writing(self) -> bool:
        """Whether decode waits to hear when nothing is written any more."""
        return self._link is not None

    def _lead(self, commit_of: Callable[[Digest, Commit], dict[str, Any]]) -> tuple[Digest, Commit] | ErrorEvent:
        self._pending: deque[_Write] = deque()
        try:
            self._target = self.writer.target(decode_offer(self._ticket.offer))
        except TransferFailed as failure:
            self.writer.failed(self._ticket.decode_incarnation, failure)
            if self.writer.on_device:
                raise  # The views do not show what a device has computed.
            return super()._lead(commit_of)
        sock = self._connect()
        try:
            link = self._begin(sock, 0)
            assert link is not None
            content = {"machine": self.place.machine, "processes": self.place.processes, "pid": os.getpid()}
            link.send_json(FrameType.WRITES, content)
            self._expect(link, FrameType.READY)
        except BaseException:
            sock.close()
            raise
        self._link, self._sock = link, sock
        try:
            return self._push(link, self._target, commit_of)
        except TransferFailed as failure:
            # Decode says so if it misses what NIXL should have brought. A cancel is no failure.
            if isinstance(failure, NixlFailed) or failure.code == codes.TRANSFER_FAILED:
                self.writer.failed(self._ticket.decode_incarnation, failure)
            raise

    def _send_part(self, link: SealedSocket, part: Part, digest: Digest) -> None:
        size_bytes = len(part.blocks.ids) * self.layout.layer_block_bytes
        for layer in range(self.layout.layers):
            super()._send_part(link, replace(part, layer=layer, size_bytes=size_bytes), digest)

    def _push(
        self, link: SealedSocket, target: Target, commit_of: Callable[[Digest, Commit], dict[str, Any]]
    ) -> tuple[Digest, Commit] | ErrorEvent:
        told_s, before = time.monotonic(), UCX_LOG.endpoints()
        while not isinstance(item := self._take(), Commit) or self._pending:
            if isinstance(item, ErrorEvent):
                content = {"code": item.code, "message": item.message, "retryable": item.retryable}
                link.send_json(FrameType.ERROR, content)
                return item
            if isinstance(item, Part):
                self._pending.append(self._write(target, item))
            self._collect(link, target, before)
            if link.answered():
                self._read_answer(link)
            if time.monotonic() - told_s > self._timeouts.progress_s:
                self._send(link, Header(FrameType.PROGRESS))
                told_s = time.monotonic()
        target.agent.notify(target.peer, self._ticket.transfer_id.encode())
        digest, moved = combined(self._digests), self.moved
        said = {} if moved is None else {"moved": [moved.transport, moved.evidence, moved.interface]}
        link.send_json(FrameType.COMMIT, commit_of(digest, item) | {"connections": [0]} | said)
        self._work_until_answered(link, target)
        self._read_answer(link)
        self._acknowledged = True
        self.writer.worked(self._ticket.decode_incarnation)
        return digest, item

    def _work_until_answered(self, link: SealedSocket, target: Target) -> None:
        """Let the agent work until decode answers, as the notification may be under way."""
        until_s = time.monotonic() + self._timeouts.peer_s
        while not link.answered() and time.monotonic() < until_s and self._outbox.failure is None:
            target.agent.progress()
            time.sleep(_POLL_S)
        if self._outbox.failure is not None:
            raise self._outbox.failure

    def _take(self) -> Part | Commit | ErrorEvent | None:
        """Return what comes next, or None after a moment. Raises the failure, as of a cancel."""
        if len(self._pending) < _AT_ONCE:
            item = self._outbox.next(_POLL_S if self._pending else self._timeouts.progress_s)
            if not (isinstance(item, Commit) and self._pending):
                return item
        time.sleep(_POLL_S)
        if self._outbox.failure is not None:
            raise self._outbox.failure
        return None

    def _write(self, target: Target, part: Part) -> _Write:
        """Begin to write some blocks."""
        cache, ids, offer = part.blocks.cache, part.blocks.ids, target.offer
        theirs = offer.blocks[part.first_block : part.first_block + len(ids)]
        if len(theirs) != len(ids):
            raise TransferFailed("there are more blocks than decode has reserved")
        source, tags = target.agent.region, b""
        if source.device is None:
            for number, block in enumerate(ids, part.first_block):
                whole = KvBlocks(cache, (block,))
                parts = (whole.views(layer)[0] for layer in range(self.layout.layers))
                tags += block_tag(self._keys.blocks, self._ticket.integrity, number, parts)
        size_bytes = len(ids) * source.block_bytes
        limit_s = self._timeouts.peer_s + size_bytes / _LEAST_BYTES_PER_S
        limit_s += _CONNECT_S if target.writer.connects(target) else 0.0
        handle = target.agent.write(
            target.peer,
            [source.piece(block) for block in ids],
            offer.region,
            [offer.region.piece(block) for block in theirs],
        )
        return _Write(handle, part.first_block, len(ids), tags, size_bytes, time.monotonic() + limit_s)

    def _collect(self, link: SealedSocket, target: Target, before: frozenset[str]) -> None:
        """Tell decode of the writes that are over, in order."""
        while self._pending and target.agent.done(self._pending[0].handle):
            write = self._pending.popleft()
            target.agent.forget(write.handle)
            self.moved = target.writer.moved(target, before)
            header = Header(FrameType.WRITTEN, 0, 0, write.first_block, write.n_blocks)
            self._send(link, header, [memoryview(write.tags)] if write.tags else [])
            self._digests[0].add_tag(write.tags, write.size_bytes)
        if self._pending and time.monotonic() > self._pending[0].deadline_s:
            self._broken = True
            raise NixlFailed(f"NIXL has not written {self._pending[0].size_bytes} bytes in time")

    @staticmethod
    def _expect(link: SealedSocket, expected: FrameType) -> None:
        kind, payload = link.answer()
        if kind is FrameType.ERROR:
            content = frame_socket.parse_json(payload)
            raise TransferFailed(f"{content.get('code')}: {content.get('message')}")
        if kind is not expected:
            raise FrameError(f"expected {expected.name}, got {kind.name}")

    def _end_helpers(self) -> None:
        """Leave the connection open, by which `settle` tells decode; there are no others."""

    def settle(self) -> None:
        """Wait for the writes that are left after a failure, tell decode, and close.

        If they do not end, the connections to the peer are closed, which ends them. What is on its
        way then may still arrive, and decode closes its own connections before it uses the blocks.
        """
        if self._target is None:
            return
        self._await_writes(self._target)
        broken = self._broken or bool(self._pending)
        self._target.writer.leave(self._target, broken=broken)
        self._await_writes(self._target)
        if self._link is None or self._sock is None:
            return
        with self._sock:
            if self._pending or self._acknowledged:
                return
            try:
                self._link.send_json(FrameType.RELEASED, {"flushed": not broken})
                self._link.part(self._timeouts.peer_s)
            except OSError as failure:
                log.info("transfer %s: %s", self._ticket.transfer_id, failure or type(failure).__name__)

    def _await_writes(self, target: Target) -> None:
        until_s = time.monotonic() + _SETTLE_S
        while self._pending and time.monotonic() < until_s:
            self._pending = deque(write for write in self._pending if not self._has_ended(write, target))
            time.sleep(_POLL_S)

    def _has_ended(self, write: _Write, target: Target) -> bool:
        try:
            if not target.agent.done(write.handle):
                return False
            target.agent.forget(write.handle)
        except TransferFailed:
            self._broken = True
        return True


class NixlKvSender(TcpKvSender):
    """Implements contract.KvSender by writes into the memory of decode."""

    def __init__(self, *args: Any, writer: Writer, layout: KvLayout, place: Place, **more: Any) -> None:
        super().__init__(*args, **more)
        self._layers = layout.layers
        whole_bytes = layout.layers * layout.layer_block_bytes
        blocks = min(_MOST_BLOCKS, max(1, WRITE_BYTES // whole_bytes))
        self._outbox = Outbox(blocks * layout.layer_block_bytes)
        ends = self._ticket, self._key, self._incarnation
        self._writes = Writes(*ends, self._outbox, self._connect, self._timeouts, 1)
        self._writes.writer, self._writes.layout, self._writes.place = writer, layout, place

    @property
    def reads_region(self) -> bool:
        return True

    def layer_ready(self, layer: int, first_block: int, blocks: KvBlocks) -> None:
        """Take the blocks with their last layer, which makes them whole."""
        if layer == self._layers - 1:
            super().layer_ready(layer, first_block, blocks)

    def cancel(self) -> None:
        if not self._writes.writing:
            super().cancel()
            return
        with self._lock:
            self._cancelled = True
        self._outbox.fail(TransferFailed(codes.CANCELLED))

    def _lanes(self) -> Lanes:
        return self._writes

    def _run(self) -> None:
        super()._run()
        self._writes.settle()

    def _sent(self, digest: Digest, commit: Commit, first_byte_s: float) -> TransferDone:
        done, moved = super()._sent(digest, commit, first_byte_s), self._writes.moved
        return done if moved is None else replace(done, moved=moved, interface=moved.interface)
