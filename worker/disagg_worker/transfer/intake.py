"""The decode half of a bound transfer: frames of version 2 from up to four connections.

Each connection has a thread that writes into the reserved blocks. The blocks may be given back only
when none of them can write any more: whoever leaves last after a failure does so.
"""

from __future__ import annotations

import socket
import threading
import time
from dataclasses import replace
from itertools import combinations

from disagg_protocol.ticket import Ticket, TicketError
from disagg_worker.engine.contract import Reservation
from disagg_worker.transfer import frame_socket
from disagg_worker.transfer.frames import FrameError, FrameType, Header
from disagg_worker.transfer.greeting import MAX_CONNECTIONS
from disagg_worker.transfer.landing import Landing
from disagg_worker.transfer.manifest import Coverage, Digest, combined, verify_commit
from disagg_worker.transfer.received import Received
from disagg_worker.transfer.sealed_socket import SealedSocket
from disagg_worker.transfer.write_intake import WriteIntake
from disagg_worker.values.layouts import KvLayout

# The lists of connections that a commit may have.
_POSSIBLE = [[0, *more] for n in range(MAX_CONNECTIONS) for more in combinations(range(1, MAX_CONNECTIONS), n)]


class Intake:
    """The state that the connections of one transfer share."""

    def __init__(
        self,
        ticket: Ticket,
        reservation: Reservation,
        layout: KvLayout,
        vocab_size: int,
        idle_s: float,
        landing: Landing | None = None,
    ) -> None:
        self._ticket = ticket
        self._layout = layout
        self._reservation = reservation
        self._vocab_size = vocab_size
        self._idle_s = idle_s
        self._started_s = self.heard_s = time.monotonic()
        self._changed = threading.Condition()
        self._coverage = Coverage(layout, reservation.n_blocks, ticket.held_blocks)
        self._digests: dict[int, Digest] = {}
        self._writing: dict[int, socket.socket] = {}
        self._committed: list[int] | None = None
        self._failure: str | None = None
        self._writes = None if landing is None else WriteIntake(landing, ticket, layout)

    @property
    def failure(self) -> str:
        """The reason for which the transfer has failed, which is that of its first failure."""
        return self._failure or ""

    def join(self, connection: int, sock: socket.socket) -> None:
        """Add a connection.

        Raises TicketError for a number that was used already or is not in the commit, and once the
        transfer has failed.
        """
        with self._changed:
            known = self._committed is None or connection in self._committed
            if connection in self._digests or not known or self._failure is not None:
                raise TicketError(f"ticket: unknown, used, expired or cancelled (connection {connection})")
            self._digests[connection] = Digest()
            self._writing[connection] = sock
            self._changed.notify_all()

    def receive(self, connection: int, link: SealedSocket, key: bytes) -> Received | None:
        """Receive until the connection has done its part; connection 0 returns the whole.

        `key` is that of the tags of blocks.

        Raises FrameError or OSError; the caller then calls `leave`.
        """
        if self._writes is not None and not connection:
            self._writes.key = key
        while True:
            header = link.header()
            self.heard_s = time.monotonic()
            if header.type is FrameType.LAYER:
                self._layer(connection, link, header)
                continue
            payload = link.control(header)
            if self._writes is not None and not connection and self._writes.takes(link, header, payload):
                if header.type is FrameType.WRITTEN:
                    self._written(header, payload)
                continue
            if header.type is FrameType.END and connection:
                self._ended(connection)
                return None
            if header.type is FrameType.COMMIT and not connection:
                return self._commit(payload)
            if header.type is FrameType.ERROR:
                content = frame_socket.parse_json(payload)
                raise FrameError(f"prefill gave up: {content.get('code')}: {content.get('message')}")
            if header.type is not FrameType.PROGRESS:
                raise FrameError(f"unexpected {header.type.name}")

    def _layer(self, connection: int, link: SealedSocket, header: Header) -> None:
        with self._changed:
            if self._failure is not None:
                raise FrameError(self._failure)
            self._coverage.claim(header)
        with self._reservation.blocks(header.first_block, header.n_blocks).writing(header.layer) as views:
            tag = link.into(header, views)
        with self._changed:
            self._coverage.arrived(header)
            self._digests[connection].add_tag(tag, header.length_bytes)

    def _written(self, header: Header, tags: bytes) -> None:
        """Take blocks that lie in their place, with all layers."""
        assert self._writes is not None
        size_bytes = self._layout.layer_block_bytes * header.n_blocks
        layers = [
            replace(header, type=FrameType.LAYER, layer=i, length_bytes=size_bytes) for i in range(self._layout.layers)
        ]
        with self._changed:
            if self._failure is not None:
                raise FrameError(self._failure)
            for layer in layers:
                self._coverage.claim(layer)
        self._writes.check(header, tags)
        with self._changed:
            for layer in layers:
                self._coverage.arrived(layer)
            self._digests[0].add_tag(tags, len(layers) * size_bytes)

    def _ended(self, connection: int) -> None:
        with self._changed:
            # Somebody must be there who ends the transfer.
            if not self._changed.wait_for(lambda: 0 in self._digests or self._failure is not None, self._idle_s):
                raise TimeoutError("timed out")
            if self._failure is not None:
                raise FrameError(self._failure)
            del self._writing[connection]
            self._changed.notify_all()

    def _commit(self, payload: bytes) -> Received:
        """Wait for the last frames of the other connections, and verify the whole."""
        content = frame_socket.parse_json(payload)
        moved = None if self._writes is None else self._writes.committed(content, self._idle_s)
        connections = content.get("connections")
        if not isinstance(connections, list) or connections not in _POSSIBLE:
            raise FrameError(f"commit.connections: {connections!r} is no list of connections")
        with self._changed:
            self._committed = connections
            ended = self._changed.wait_for(self._all_ended, self._idle_s)
            if self._failure is not None:
                raise FrameError(self._failure)
            if not ended:
                raise TimeoutError("timed out")
            digest = combined(self._digests)
        token = verify_commit(content, self._coverage, self._ticket, self._vocab_size, digest)
        return Received(token, digest.payload_bytes, time.monotonic() - self._started_s, moved)

    def _all_ended(self) -> bool:
        """Return whether exactly the connections of the commit have joined, and the others have
        ended; or the transfer has failed.
        """
        return self._failure is not None or (sorted(self._digests) == self._committed and self._writing.keys() == {0})

    def fail(self, message: str) -> None:
        """Make all connections end; they may still say why."""
        with self._changed:
            self._failure = self._failure or message
            # By connection 0 prefill has yet to say that it writes no more.
            spared = 0 if self._writes is not None and self._writes.begun else -1
            socks = [sock for connection, sock in self._writing.items() if connection != spared]
            self._changed.notify_all()
        for sock in socks:
            frame_socket.stop_reading(sock)

    def call_off(self) -> bool:
        """Tell a prefill worker that writes by NIXL to stop, if one does.

        It says so when it has, which ends the connection.
        """
        return self._writes is not None and self._writes.call_off()

    def leave(self, connection: int) -> bool:
        """Note that a connection writes no more, after a failure of any.

        Returns True to exactly one caller: the one after which none writes.
        """
        with self._changed:
            wrote = self._writing.pop(connection, None) is not None
            return wrote and not self._writing
