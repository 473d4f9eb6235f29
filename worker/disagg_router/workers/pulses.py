"""The beats of the workers: a connection to each, and the verdict on each.

It is used on the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from disagg_router.errors import AttemptFailed, NoRoom
from disagg_router.workers.client import WorkerClient
from disagg_router.workers.lease import AwakeClock, Lease, Limits, Verdict
from disagg_router.workers.worker_info import Worker
from disagg_wire.protocol import FEATURE_PULSE

log = logging.getLogger(__name__)
_TICK_S = 0.1
# After this time without a beat, the connection is given up and opened anew: it may be one that
# nobody has at the other end. Only time for which this process was awake counts, or one that
# starves again and again would never hear anybody.
_PATIENCE_S = 2.0
# The wait before a connection that broke is opened again, and up to as long again by chance.
_PAUSE_S = 0.25


@dataclass(slots=True)
class _Watch:
    """The connection to one worker."""

    worker: Worker
    lease: Lease
    task: asyncio.Task[None] | None = None
    verdict: Verdict = field(default=Verdict.ALIVE)
    patience: asyncio.Timeout | None = None
    """Ends the connection that is open, or being opened."""
    since_s: float = 0.0
    """When the last beat came by it, or when it was begun."""


class Pulses:
    """The workers that send beats. `changed` is called when the verdict on one is another."""

    def __init__(self, client: WorkerClient, limits: Limits, changed: Callable[[Worker, Verdict], None]) -> None:
        self._client = client
        self._limits = limits
        self._changed = changed
        self._watches: dict[str, _Watch] = {}
        # More than a tick, so that one that comes a little late counts in full.
        self._clock = AwakeClock(2 * _TICK_S)

    def note(self, worker: Worker) -> None:
        """Listen to a worker that has answered a poll, if it sends beats."""
        watch = self._watches.get(worker.name)
        if watch is not None and (watch.worker.incarnation, watch.worker.url) == (worker.incarnation, worker.url):
            watch.lease.answered(self._clock.now_s)
            return
        self._drop(worker.name)
        if FEATURE_PULSE in worker.features:
            watch = self._watches[worker.name] = _Watch(worker, Lease(self._limits))
            watch.task = asyncio.create_task(self._listen(watch))

    def keep_only(self, names: Collection[str]) -> None:
        """Listen no longer to workers that are not listed any more."""
        for name in self._watches.keys() - set(names):
            self._drop(name)

    def _drop(self, name: str) -> None:
        watch = self._watches.pop(name, None)
        if watch is not None and watch.task is not None:
            watch.task.cancel()

    @property
    def awake_s(self) -> float:
        """The time for which this process has been awake."""
        return self._clock.now_s

    def is_down(self, worker: Worker) -> bool:
        """Return whether this process of a worker is silent or hangs."""
        watch = self._watches.get(worker.name)
        return watch is not None and watch.worker.incarnation == worker.incarnation and watch.verdict != Verdict.ALIVE

    def vouches_for(self, worker: Worker) -> bool:
        """Return whether beats say that it is alive, whatever else it does not answer."""
        watch = self._watches.get(worker.name)
        same = watch is not None and watch.worker.incarnation == worker.incarnation and watch.lease.has_begun
        return same and not self.is_down(worker)

    async def run(self) -> None:
        """Judge until cancelled."""
        try:
            while True:
                self._clock.tick(time.monotonic())
                self._judge()
                await asyncio.sleep(_TICK_S)
        finally:
            tasks = [watch.task for watch in self._watches.values() if watch.task is not None]
            for name in list(self._watches):
                self._drop(name)
            await asyncio.gather(*tasks, return_exceptions=True)

    def _judge(self) -> None:
        for watch in list(self._watches.values()):
            if watch.patience is not None and self._clock.now_s - watch.since_s > _PATIENCE_S:
                watch.patience.reschedule(0.0)
                watch.patience = None
            verdict = watch.lease.verdict(self._clock.now_s)
            if verdict != watch.verdict:
                watch.verdict = verdict
                self._changed(watch.worker, verdict)

    async def _listen(self, watch: _Watch) -> None:
        while True:
            watch.since_s = self._clock.now_s
            try:
                async with asyncio.timeout(None) as watch.patience:
                    await self._hear(watch)
            except (AttemptFailed, NoRoom, TimeoutError, ValueError) as failure:
                log.debug("no beats from %s: %s", watch.worker.pod, failure or type(failure).__name__)
            except Exception:
                log.exception("no beats from %s", watch.worker.pod)
            watch.patience = None
            await asyncio.sleep(_PAUSE_S * (1.0 + random.random()))

    async def _hear(self, watch: _Watch) -> None:
        async with contextlib.aclosing(self._client.beats(watch.worker)) as beats:
            async for beat in beats:
                watch.since_s = self._clock.now_s
                watch.lease.heard(beat, watch.since_s)
