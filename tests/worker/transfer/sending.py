"""A sender of KV whose end a test awaits."""

from __future__ import annotations

import queue

from tests.worker.transfer.bound_rig import PREFILL
from tests.worker.transfer.rig import FIRST, KEY, LAYOUT, TOKENS, layer_blocks

from disagg_protocol.events import ErrorEvent
from disagg_protocol.ticket import Ticket
from disagg_worker.transfer.sender import TcpKvSender, TransferDone
from disagg_worker.transfer.sender_timeouts import SenderTimeouts


class Sending:
    def __init__(
        self,
        ticket: Ticket,
        connections: int = 1,
        timeouts: SenderTimeouts | None = None,
        tokens: list[int] = TOKENS,
    ) -> None:
        self.done: queue.SimpleQueue[TransferDone] = queue.SimpleQueue()
        self.sender = TcpKvSender(
            ticket, KEY, PREFILL, tokens, ("127.0.0.1", "lo"), self.done.put, timeouts, connections
        )

    def layer(self, layer: int) -> None:
        self.sender.layer_ready(layer, 0, layer_blocks())

    def all(self) -> None:
        for layer in range(LAYOUT.layers):
            self.layer(layer)
        self.sender.commit(FIRST)

    def end(self) -> TransferDone:
        done = self.done.get(timeout=20)
        assert self.done.empty()
        return done

    def error(self) -> ErrorEvent:
        done = self.end()
        assert done.error is not None
        assert done.kv_bytes == 0
        return done.error
