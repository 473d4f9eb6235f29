"""Streams that clients may resume: they are read by the worker itself, and passed on to whoever
asks, so that they outlive the router that began them.

It is used on the event loop.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Callable

from disagg_protocol.bodies import Line, Lines, encoded, error_json
from disagg_protocol.events import ErrorEvent
from disagg_protocol.keep_limits import KeepLimits
from disagg_protocol.requests import Job
from disagg_protocol.stream_store import StreamKey, StreamRecord, StreamStore
from disagg_wire import codes

log = logging.getLogger(__name__)
# The time that a job has beyond its own deadline to end.
_GRACE_S = 5.0
# A timer may be early by less than this.
_TIMER_S = 0.05
_BROKEN_OFF = error_json(ErrorEvent(codes.CANCELLED, "it was not made further: nobody read it", retryable=True))
_FAILED = error_json(ErrorEvent(codes.INTERNAL, "internal error; see the worker's log", retryable=True))


class _Reader:
    """What one peer has not read yet, at most as much as one request can emit."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._end = self._closed = False
        self._waiter: asyncio.Future[None] | None = None

    def put(self, lines: Lines) -> None:
        if lines.content:
            self._pieces.append(lines.content)
        self._end = self._end or lines.end
        self._wake()

    def close(self) -> None:
        """End it after what has come."""
        self._closed = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def lines(self) -> AsyncIterator[Lines]:
        """Yield what has come since the last time, up to the line that ends the stream."""
        end = False
        while not end:
            if not self._pieces:
                if self._closed:
                    return
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
                continue
            content, end = b"".join(self._pieces), self._end
            self._pieces.clear()
            yield Lines(content, end)


class _Keeper:
    """One stream, from its beginning until its job has ended."""

    def __init__(self, answers: KeptAnswers, record: StreamRecord, job: Job, close: Callable[[], None]) -> None:
        self.record = record
        self._answers = answers
        self._job = job
        self._close = close
        self._readers: set[_Reader] = set()
        self._timer: asyncio.TimerHandle | None = None
        self.runs = True
        self._task = asyncio.create_task(self._read())

    def open(self, reader: _Reader) -> None:
        """Pass on to a reader what comes from now on."""
        self._readers.add(reader)
        self._found()

    def left(self, reader: _Reader) -> None:
        """Note that a reader reads no more (idempotent). Without any, it soon ends."""
        if reader not in self._readers:
            return
        self._readers.discard(reader)
        if self._readers:
            return
        if not self.runs:
            self._close()
            return
        answers = self._answers
        if not self.record.tokens or self.record not in answers.store or answers.limits.unread_s <= 0:
            self.stop()
            return
        answers.store.unread(self.record, time.monotonic())
        answers.now_unread(self)
        if self.runs:
            self._timer = asyncio.get_running_loop().call_later(answers.limits.unread_s, self.stop)

    def _found(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._answers.unread.pop(self, None)
        self._answers.store.read(self.record)

    async def _read(self) -> None:
        try:
            async with asyncio.timeout(self._job.deadline_s - time.monotonic() + _GRACE_S):
                async for content in self._job.lines:
                    self._take(content)
        except Exception:
            log.exception("a stream failed")
            self._take(_FAILED)
        self._over()

    def _take(self, content: Line | Lines) -> None:
        lines = encoded(content) if isinstance(content, dict) else content
        for line in [content] if isinstance(content, dict) else map(json.loads, content.content.splitlines()):
            self._answers.store.take(self.record, line)
        for reader in self._readers:
            reader.put(lines)

    def _over(self) -> None:
        """Give back what the job holds, once nobody waits for the last lines."""
        if not self.runs:
            return
        self.runs = False
        if self._timer is not None:
            self._timer.cancel()
        self._answers.ended(self)
        for reader in self._readers:
            reader.close()
        if not self._readers:
            self._close()

    def stop(self) -> None:
        """End it now; what has been made stays (idempotent)."""
        if not self.runs:
            return
        self._task.cancel()
        for reader in self._readers:
            reader.put(encoded(_BROKEN_OFF))
        self._over()
        self._close()


class KeptAnswers:
    """The streams of a worker that can be resumed."""

    def __init__(self, limits: KeepLimits) -> None:
        self.limits = limits
        self.store = StreamStore(limits.keep_s, limits.most_bytes)
        self.unread: dict[_Keeper, None] = {}
        self._running: dict[StreamKey, _Keeper] = {}

    def keep(self, job: Job, close: Callable[[], None], record: StreamRecord) -> Job:
        """Keep what a job makes, and return the job of its first reader. `close` (idempotent) is
        called when the job has ended, and its reader has had the last line.
        """
        self.store.begin(record, time.monotonic())
        if (same := self._running.get(record.key)) is not None:
            same.stop()
        keeper = self._running[record.key] = _Keeper(self, record, job, close)
        reader = _Reader()
        keeper.open(reader)
        return Job(reader.lines(), lambda: keeper.left(reader), job.interrupt, job.deadline_s)

    def open(self, key: StreamKey) -> tuple[AsyncIterator[Line | Lines], Callable[[], None]] | None:
        """Return the lines of a stream from its first token on, and what is to be called when they
        are not read any more; None if nothing is kept of it.
        """
        record = self.store.get(key, time.monotonic())
        if record is None:
            return None
        reader = _Reader()
        reader.put(Lines(record.lines(), end=False))
        keeper = self._running.get(key)
        if keeper is not None and keeper.record is record:
            keeper.open(reader)
            return reader.lines(), lambda: keeper.left(reader)
        reader.put(encoded(record.end or _BROKEN_OFF))
        return reader.lines(), lambda: None

    def stop(self, name: str, run: str, epoch: int) -> None:
        """End what is made of one attempt: its router needs no more of it."""
        for keeper in [k for key, k in self._running.items() if key[:3] == (name, run, epoch)]:
            keeper.stop()

    def now_unread(self, keeper: _Keeper) -> None:
        """Note that nobody reads a stream; if there are too many, the oldest one ends."""
        self.unread[keeper] = None
        while len(self.unread) > self.limits.unread_streams:
            next(iter(self.unread)).stop()

    def ended(self, keeper: _Keeper) -> None:
        """Note that a stream is made no further. It is forgotten when its time is over, even if
        nobody asks for anything.
        """
        self.unread.pop(keeper, None)
        if self._running.get(keeper.record.key) is keeper:
            del self._running[keeper.record.key]
        now_s = time.monotonic()
        if keeper.record in self.store:
            self.store.unread(keeper.record, now_s)
            loop = asyncio.get_running_loop()
            loop.call_later(self.limits.keep_s + _TIMER_S, lambda: self.store.expire(time.monotonic()))
