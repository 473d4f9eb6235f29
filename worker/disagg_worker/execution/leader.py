"""Rank 0's side of a group: it starts the other ranks as processes, sends them each step, and
notices at once if one of them ends.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from disagg_protocol.errors import EngineError, ModelError
from disagg_worker.execution import rank_json, step_bytes
from disagg_worker.execution.channel import Channel, MessageKind
from disagg_worker.execution.collectives import Collectives, serve_store
from disagg_worker.execution.executor import LocalExecutor, OnLayer, Step
from disagg_worker.execution.shared_staging import BUFFER_BYTES, Move
from disagg_worker.values.layouts import KvLayout

log = logging.getLogger(__name__)
_EXIT_S = 5.0
OnLost = Callable[[str], None]


class RankLost(EngineError):
    """Raised when a rank of the group has ended or hangs, so that this worker cannot go on."""


@dataclass(slots=True)
class _Rank:
    number: int
    process: subprocess.Popen[bytes]
    channel: Channel
    facts: dict[str, Any] | None = None  # The content of its LOADED message.
    ready: bool = False


class Group:
    """The other ranks, from their start to their end.

    `on_lost` is called once, on any thread, when a rank is lost for good.
    """

    def __init__(
        self, start: dict[str, Any], size: int, timeout_s: float, start_timeout_s: float, on_lost: OnLost
    ) -> None:
        """Start the ranks and send them `start`, from which they load their parts (rank.py).

        `timeout_s` bounds the exchange of one step; `start_timeout_s` bounds the start of the
        ranks, once rank 0 is loaded.
        """
        self.size, self.timeout_s = size, timeout_s
        self._start_timeout_s = start_timeout_s
        self._on_lost = on_lost
        self._changed = threading.Condition()
        self._failure = ""
        self._closing = False
        self._exports: _Exports | None = None
        self._moves = 0
        self._moving: dict[int, int] = {}
        self.memory_fd = os.memfd_create("disagg-kv")
        self._store, port = serve_store(size, start_timeout_s)
        self._ranks = [self._spawn(number) for number in range(1, size)]
        for rank in self._ranks:
            rank.channel.send_json(
                MessageKind.START,
                {**start, "rank": rank.number, "size": size, "timeout_s": timeout_s, "store_port": port},
            )
            threading.Thread(target=self._listen, args=(rank,), name=f"rank-{rank.number}", daemon=True).start()

    def _spawn(self, number: int) -> _Rank:
        ours, theirs = socket.socketpair()
        packages = str(Path(__file__).parents[2])
        path = os.pathsep.join([packages, *filter(None, [os.environ.get("PYTHONPATH")])])
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "disagg_worker.execution.rank", str(theirs.fileno()), str(self.memory_fd)],
                pass_fds=(theirs.fileno(), self.memory_fd),
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": path},
            )
        log.info("rank %d of %d is process %d", number, self.size, process.pid)
        return _Rank(number, process, Channel(ours, self.timeout_s))

    # ---- start ----

    def facts(self) -> list[dict[str, Any]]:
        """Return the LOADED messages of the ranks as soon as their weights are loaded.

        Raises ModelError.
        """
        self._await("load its weights", lambda r: r.facts is not None)
        return [r.facts for r in self._ranks if r.facts is not None]

    def make_cache(self, layout: KvLayout, blocks: int, buffers: int) -> None:
        """Tell every rank to allocate its part; `connect` and `await_ready` must follow.

        The ranks share so many buffers, or with 0 a copy of all blocks.
        """
        size = buffers * BUFFER_BYTES if buffers else blocks * layout.layers * layout.layer_block_bytes
        os.ftruncate(self.memory_fd, size)
        for rank in self._ranks:
            content = {"layout": asdict(layout), "blocks": blocks, "buffers": buffers}
            rank.channel.send_json(MessageKind.CACHE, content)

    def connect(self, collectives: Collectives) -> None:
        """Let rank 0 join the group. Raises ModelError."""
        try:
            collectives.connect(self._store)
        except RuntimeError as error:
            raise ModelError(self._reason(f"the ranks do not find each other: {error}")) from None

    def await_ready(self) -> None:
        """Wait until all ranks are ready. Raises ModelError."""
        self._await("get ready", lambda r: r.ready)

    def _await(self, what: str, done: Callable[[_Rank], bool]) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._failure or all(map(done, self._ranks)), self._start_timeout_s)
            if self._failure:
                raise ModelError(self._failure)
            if late := [r.number for r in self._ranks if not done(r)]:
                raise ModelError(f"rank {late[0]} of {self.size} did not {what} within {self._start_timeout_s:g} s")

    # ---- steps ----

    def check(self) -> None:
        if self._failure:
            raise RankLost(self._failure)

    def send_step(self, number: int, step: Step, exports: _Exports | None) -> None:
        """Send a step to all ranks. Raises RankLost."""
        self.check()
        with self._changed:
            self._exports = exports
        self._send_all(MessageKind.STEP, step_bytes.encode(number, step))

    def _send_all(self, kind: MessageKind, content: bytes) -> None:
        for rank in self._ranks:
            try:
                rank.channel.send(kind, content)
            except OSError as error:
                raise RankLost(self.fail(self._reason(f"rank {rank.number} of {self.size}: {error}"))) from None

    def begin_move(self, move: Move) -> Callable[[], None]:
        """Let all ranks copy KV between a buffer and their parts of the cache.

        Return a function that waits until they have. Any thread may call both. Raises RankLost.
        """
        self.check()
        with self._changed:
            self._moves += 1
            number = self._moves
            self._moving[number] = len(self._ranks)
        self._send_all(MessageKind.MOVE, json.dumps({"number": number, **move.as_json()}).encode())

        def wait() -> None:
            with self._changed:
                done = self._changed.wait_for(lambda: self._failure or not self._moving[number], self.timeout_s)
                del self._moving[number]
            self.check()
            if not done:
                raise RankLost(self.fail(f"a rank did not copy its KV within {self.timeout_s:g} s"))

        return wait

    def _moved(self, number: int) -> None:
        with self._changed:
            if number in self._moving:
                self._moving[number] -= 1
                self._changed.notify_all()

    def await_exports(self, exports: _Exports) -> None:
        """Wait until every rank has exported every layer. Raises RankLost."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._failure or exports.complete, self.timeout_s)
        self.check()
        if not done:
            raise RankLost(self.fail(f"a rank did not export its KV within {self.timeout_s:g} s"))

    def exported(self, exports: _Exports, rank: int, layer: int) -> None:
        """Note that one rank's part of a layer is in the host copy."""
        with self._changed:
            exports.note(rank, layer)
            self._changed.notify_all()

    # ---- end ----

    def _listen(self, rank: _Rank) -> None:
        """Read the messages of one rank until it has gone."""
        try:
            while True:
                kind, content = rank.channel.receive()
                if kind is MessageKind.EXPORTED:
                    self._note(rank, rank_json.loads(content))
                    continue
                message = rank_json.loads(content)
                if kind is MessageKind.MOVED:
                    self._moved(message["number"])
                    continue
                if kind is MessageKind.FAILED:
                    self.fail(f"rank {rank.number} of {self.size}: {message['message']}")
                with self._changed:
                    rank.facts = message if kind is MessageKind.LOADED else rank.facts
                    rank.ready = rank.ready or kind is MessageKind.READY
                    self._changed.notify_all()
        except (OSError, ValueError) as error:
            if not self._closing:
                self.fail(f"rank {rank.number} of {self.size} {_ending(rank.process, error)}")

    def _note(self, rank: _Rank, message: dict[str, Any]) -> None:
        exports = self._exports
        if exports is not None and exports.number == message["step"]:
            self.exported(exports, rank.number, message["layer"])

    def _reason(self, otherwise: str) -> str:
        """Return the reason for which a rank was lost.

        Its own end, which the listening thread notices within moments, explains more than
        `otherwise`, the error that was seen here.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._failure, 2.0)
        return self._failure or otherwise

    def explain(self, error: Exception) -> RankLost:
        """End the group after a step that failed on rank 0, since the ranks are out of step, and
        return the error to raise.
        """
        return RankLost(self.fail(self._reason(f"a step failed on rank 0 of {self.size}: {error}")))

    def fail(self, message: str) -> str:
        """End the group and return the reason (idempotent; the first reason stays)."""
        with self._changed:
            if self._failure or self._closing:
                return self._failure or message
            self._failure = message
            self._changed.notify_all()
        log.error("%s", message)
        for rank in self._ranks:
            rank.process.kill()
        self._on_lost(message)
        return message

    def close(self) -> None:
        """End all ranks (idempotent)."""
        with self._changed:
            if self._closing:
                return
            self._closing = True
        for rank in self._ranks:
            rank.channel.close()
        deadline_s = time.monotonic() + _EXIT_S
        for rank in self._ranks:
            try:
                rank.process.wait(max(0.0, deadline_s - time.monotonic()))
            except subprocess.TimeoutExpired:
                rank.process.kill()
                rank.process.wait()
        os.close(self.memory_fd)


def _ending(process: subprocess.Popen[bytes], error: Exception) -> str:
    try:
        status = process.wait(2.0)
    except subprocess.TimeoutExpired:
        return f"is lost: {error}"
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class _Exports:
    """The layers of one step that the ranks have exported.

    A layer is reported, in order, as soon as all ranks have exported it. The group's lock must be
    held.
    """

    def __init__(self, number: int, size: int, layers: int, on_layer: OnLayer) -> None:
        self.number = number
        self._layers, self._on_layer = layers, on_layer
        self._done = [0] * size
        self._reported = 0

    @property
    def complete(self) -> bool:
        return self._reported == self._layers

    def note(self, rank: int, layer: int) -> None:
        self._done[rank] = layer + 1
        while self._reported < min(self._done):
            self._on_layer(self._reported)
            self._reported += 1


class GroupExecutor:
    """Implements executor.Executor over all ranks.

    Any exception in a step ends the group.
    """

    def __init__(self, group: Group, local: LocalExecutor) -> None:
        self._group, self._local = group, local
        self._number = 0

    def run(self, step: Step, on_layer: OnLayer | None = None) -> torch.Tensor:
        self._number += 1
        exports = None
        if on_layer is not None and step.export:
            exports = _Exports(self._number, self._group.size, self._local.memory.layout.layers, on_layer)
        self._group.send_step(self._number, step, exports)
        try:
            if exports is None:
                return self._local.run(step)
            made = exports
            logits = self._local.run(step, lambda layer: self._group.exported(made, 0, layer))
        except Exception as error:
            raise self._group.explain(error) from error
        self._group.await_exports(exports)
        return logits

    def close(self) -> None:
        self._local.close()
        self._group.close()
