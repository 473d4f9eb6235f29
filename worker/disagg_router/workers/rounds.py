"""Jobs that are done again and again, each by itself, so that a slow one holds up none of the
others.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

Job = Callable[[], Awaitable[Any]]


class Rounds:
    """The jobs that run now, by name. Each job bounds its own time."""

    def __init__(self) -> None:
        self._running: dict[str, asyncio.Task[Any]] = {}

    async def go(self, jobs: Mapping[str, Job], patience_s: float) -> bool:
        """Start the jobs that do not run still, and wait for all of these until they are done or
        `patience_s` seconds are over. Returns whether they are done.

        Raises what a job has raised.
        """
        for name, job in jobs.items():
            if name not in self._running:
                self._running[name] = asyncio.ensure_future(job())
        waited = [self._running[name] for name in jobs]
        if waited:
            await asyncio.wait(waited, timeout=patience_s)
        over = [name for name, task in self._running.items() if task.done()]
        for task in [self._running.pop(name) for name in over]:
            task.result()
        return all(task.done() for task in waited)

    async def close(self) -> None:
        """End the jobs that run."""
        tasks = list(self._running.values())
        self._running.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
