"""The names that workers which are not ready yet will serve.

A request for such a name may wait. Members that are not ready may not answer at all, so they are
asked apart from the others, which must be polled on time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from typing import Protocol

import httpx

from disagg_router.workers.client import WorkerClient
from disagg_router.workers.worker_info import Member, name_of
from disagg_wire.protocol import INFO_PATH


class Members(Protocol):
    """A list of workers, as far as it is used here."""

    def members(self) -> dict[str, Member]: ...


class ComingModels:
    """The names that workers report while they load, by the name of the member."""

    def __init__(self, client: WorkerClient, membership: Members, interval_s: float) -> None:
        self._client = client
        self._membership = membership
        self._interval_s = interval_s
        self._names: dict[str, str] = {}

    def names(self) -> frozenset[str]:
        return frozenset(self._names.values())

    def members(self) -> frozenset[str]:
        """Return the members that have said what they will serve."""
        return frozenset(self._names)

    def note(self, member: str, name: str) -> None:
        """Record what a worker has said; an older one says nothing."""
        if name:
            self._names[member] = name

    def keep_only(self, members: Collection[str]) -> None:
        """Forget members that are gone, or that are known as workers by now."""
        self._names = {member: name for member, name in self._names.items() if member in members}

    async def run(self) -> None:
        """Ask the members that are not ready until cancelled."""
        while True:
            started_s = time.monotonic()
            waiting = [m for m in self._membership.members().values() if not m.ready]
            await asyncio.gather(*(self._ask(m) for m in waiting))
            await asyncio.sleep(max(0.05, self._interval_s - (time.monotonic() - started_s)))

    async def _ask(self, member: Member) -> None:
        try:
            info = await self._client.get(member.url, INFO_PATH)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            return  # it has just been started, or is not well
        self.note(member.name, name_of(info))
