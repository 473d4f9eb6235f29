"""The streams of this router by the worker that they come from, so that they can be ended when
nothing more is to be expected from it.

It is used on the event loop.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from types import TracebackType

from disagg_router.errors import AttemptFailed
from disagg_router.workers.worker_info import Worker


class Lifeline:
    """One stream: `async with lifeline: ...` raises AttemptFailed if the worker is given up
    inside.
    """

    def __init__(self, lines: Lifelines, worker: Worker) -> None:
        self._lines = lines
        self.name = worker.name
        self._incarnation = worker.incarnation
        self.heard_s = asyncio.get_running_loop().time()
        """When the last line came, by the loop's clock."""
        self._scope = asyncio.timeout(None)
        self._failure: AttemptFailed | None = None

    async def __aenter__(self) -> Lifeline:
        await self._scope.__aenter__()
        self._lines.add(self)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.remove(self)
        try:
            await self._scope.__aexit__(kind, error, trace)
        except TimeoutError:
            if self._failure is None:
                raise
            raise self._failure from None

    def cut(self, message: str, reason: str) -> None:
        """End the stream with a failure."""
        if self._failure is None:
            self._failure = AttemptFailed(message, reason=reason, blame=(self._incarnation,))
            self._scope.reschedule(0.0)


class Lifelines:
    """The streams of all workers, by the names by which these are listed: a worker keeps its name
    when it changes its role, and its streams go on.
    """

    def __init__(self) -> None:
        self._streams: defaultdict[str, set[Lifeline]] = defaultdict(set)

    def stream(self, worker: Worker) -> Lifeline:
        """Return the context of one stream."""
        return Lifeline(self, worker)

    def add(self, line: Lifeline) -> None:
        self._streams[line.name].add(line)

    def remove(self, line: Lifeline) -> None:
        streams = self._streams[line.name]
        streams.discard(line)
        if not streams:
            del self._streams[line.name]

    def cut(self, name: str, message: str, reason: str, heard_before_s: float | None = None) -> int:
        """End the streams of a worker, and return their number. With `heard_before_s`, those go on
        of which a line has come since.
        """
        lines = [
            line for line in self._streams.get(name, ()) if heard_before_s is None or line.heard_s < heard_before_s
        ]
        for line in lines:
            line.cut(message, reason)
        return len(lines)
