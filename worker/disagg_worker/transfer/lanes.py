"""The prefill half of a bound transfer: frames of version 2 over up to four connections.

Connection 0 begins and ends the transfer. Others are opened when more waits than one connection
can take at once, and help to send the layers. Threads that read blocks end before `run` returns,
because the blocks are given back then.
"""

from __future__ import annotations

import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from disagg_protocol.events import ErrorEvent
from disagg_protocol.ticket import Ticket
from disagg_worker.transfer import frame_socket
from disagg_worker.transfer.frame_socket import FrameSocket
from disagg_worker.transfer.frames import FrameError, FrameType, Header
from disagg_worker.transfer.greeting import MAX_CONNECTIONS, begin_content, session_keys
from disagg_worker.transfer.manifest import Digest, combined
from disagg_worker.transfer.outbox import Commit, Outbox, Part
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.seals import Sealer
from disagg_worker.transfer.sender_timeouts import SenderTimeouts, TransferFailed

log = logging.getLogger(__name__)
FRAME_BYTES = 4 << 20
# With less than this in the queue, one more connection costs more than it saves.
_HELP_FROM_BYTES = 2 * FRAME_BYTES


class Lanes:
    """The connections of one transfer. `connect` opens one, and makes `cancel` able to end it."""

    def __init__(
        self,
        ticket: Ticket,
        key: bytes,
        incarnation: str,
        outbox: Outbox,
        connect: Callable[[], socket.socket],
        timeouts: SenderTimeouts,
        connections: int,
    ) -> None:
        self._ticket = ticket
        self._key = key
        self._incarnation = incarnation
        self._outbox = outbox
        self._connect = connect
        self._timeouts = timeouts
        self._connections = min(connections, MAX_CONNECTIONS)
        self._changed = threading.Condition()
        self._digests: dict[int, Digest] = {}
        self._sending: set[int] = set()
        self._socks: dict[int, socket.socket] = {}
        self._closing = False
        self._helpers: list[threading.Thread] = []

    def run(self, commit_of: Callable[[Digest, Commit], dict[str, Any]]) -> tuple[Digest, Commit] | ErrorEvent:
        """Send everything, and return what was acknowledged, or the error that ends the transfer.

        Raises TransferFailed, FrameError or OSError.
        """
        try:
            return self._lead(commit_of)
        except Exception as failure:
            # What has failed first is the reason of all that fails after it.
            self._outbox.fail(failure)
            raise (self._outbox.failure or failure) from None
        finally:
            self._end_helpers()

    def _lead(self, commit_of: Callable[[Digest, Commit], dict[str, Any]]) -> tuple[Digest, Commit] | ErrorEvent:
        with self._connect() as sock:
            link = self._begin(sock, 0)
            assert link is not None
            while isinstance(item := self._next(link), Part):
                self._help()
                self._send_part(link, item, self._digests[0])
            if not isinstance(item, Commit):
                content = {"code": item.code, "message": item.message, "retryable": item.retryable}
                link.send_json(FrameType.ERROR, content)
                return item
            self._await_helpers(link)
            digest = combined(self._digests)
            content = commit_of(digest, item) | {"connections": sorted(self._digests)}
            link.send_json(FrameType.COMMIT, content)
            self._read_answer(link)
            return digest, item

    def _begin(self, sock: socket.socket, connection: int) -> SealedSocket | None:
        """Read CHALLENGE and send BEGIN; return None if the transfer ends just now."""
        plain = FrameSocket(sock, self._timeouts.peer_s)
        raw, header = plain.header()
        if header.type is not FrameType.CHALLENGE:
            raise FrameError(f"expected CHALLENGE, got {header.type.name}")
        challenge = plain.control(raw, header)
        content = begin_content(
            self._key, challenge, self._ticket, self._incarnation, connection, secrets.token_hex(16)
        )
        with self._changed:
            if self._closing:
                return None
            self._digests[connection] = Digest()
            self._sending.add(connection)
            self._socks[connection] = sock
        plain.send_json(FrameType.BEGIN, content)
        keys, integrity = session_keys(self._key, challenge, content["proof"]), self._ticket.integrity
        self._keys = keys
        seals = Sealer(keys.to_decode, integrity), Sealer(keys.to_prefill, integrity)
        return SealedSocket(sock, self._timeouts.peer_s, *seals, self._timeouts.silence_s)

    def _next(self, link: SealedSocket) -> Part | Commit | ErrorEvent:
        """Wait for the engine's next report, and tell the peer meanwhile that this worker lives."""
        while (item := self._outbox.next(self._timeouts.progress_s)) is None:
            self._send(link, Header(FrameType.PROGRESS))
        return item

    def _send(self, link: SealedSocket, header: Header, payload: Sequence[memoryview] = ()) -> bytes:
        """Send a frame, unless the peer has said that it wants no more."""
        if not link.answered():
            try:
                return link.send(header, payload)
            except ConnectionError as failure:
                broken: Exception = failure
        else:
            broken = FrameError("an answer that was not asked for")
        # The peer's reason, which may be in the receive buffer, says more than "broken pipe".
        self._read_answer(link)
        raise broken

    @staticmethod
    def _read_answer(link: SealedSocket) -> None:
        """Read the peer's answer, and raise TransferFailed if it is not ACK."""
        kind, payload = link.answer()
        if kind is FrameType.ERROR:
            content = frame_socket.parse_json(payload)
            raise TransferFailed(f"{content.get('code')}: {content.get('message')}", str(content.get("code")))
        if kind is not FrameType.ACK:
            raise FrameError(f"expected ACK, got {kind.name}")

    def _send_part(self, link: SealedSocket, part: Part, digest: Digest) -> None:
        header = Header(FrameType.LAYER, part.layer, 0, part.first_block, len(part.blocks.ids))
        with part.blocks.reading(part.layer) as views:
            digest.add_tag(self._send(link, header, views), part.size_bytes)

    # ---- further connections ----

    def _help(self) -> None:
        """Open one more connection if much waits."""
        number = len(self._helpers) + 1
        if self._outbox.waiting_bytes < _HELP_FROM_BYTES or number >= self._connections:
            return
        name = f"kv-send-{self._ticket.transfer_id[:8]}-{number}"
        thread = threading.Thread(target=self._assist, args=(number,), name=name, daemon=True)
        self._helpers.append(thread)
        thread.start()

    def _assist(self, connection: int) -> None:
        """Send parts over one more connection until there are no more.

        If it does not come about, the others send them.
        """
        try:
            with self._connect() as sock:
                link = self._begin(sock, connection)
                if link is None:
                    return
                while isinstance(item := self._next(link), Part):
                    self._send_part(link, item, self._digests[connection])
                self._send(link, Header(FrameType.END))
                with self._changed:
                    self._sending.discard(connection)
                    self._changed.notify_all()
                # To be closed by the peer first: a reset would discard what it has not read yet.
                link.part(self._timeouts.peer_s)
        except Exception as failure:  # Whatever has happened, the leading thread must learn of it.
            if connection not in self._sending:
                log.info("transfer %s goes on without connection %d: %s", self._ticket.transfer_id, connection, failure)
                return
            self._outbox.fail(failure)
            with self._changed:
                self._changed.notify_all()
            self._hang_up()

    def _await_helpers(self, link: SealedSocket) -> None:
        """Wait until the other connections have sent their last frame."""
        until_s = frame_socket.deadline_s(self._timeouts.peer_s, FRAME_BYTES)
        with self._changed:
            self._closing = True
        while not self._helpers_have_ended(self._timeouts.progress_s):
            if time.monotonic() > until_s:
                raise TimeoutError("timed out")
            self._send(link, Header(FrameType.PROGRESS))

    def _helpers_have_ended(self, timeout_s: float) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._sending == {0} or self._outbox.failure, timeout_s)
            if self._outbox.failure is not None:
                raise self._outbox.failure
            return self._sending == {0}

    def _end_helpers(self) -> None:
        """End the threads of the other connections, whose calls all have deadlines.

        Those that have not begun never read a block, and need not be waited for.
        """
        with self._changed:
            self._closing = True
            begun = [thread for i, thread in enumerate(self._helpers, 1) if i in self._socks]
        self._hang_up()
        for thread in begun:
            thread.join()

    def _hang_up(self) -> None:
        with self._changed:
            socks = list(self._socks.values())
        for sock in socks:
            frame_socket.hang_up(sock)
