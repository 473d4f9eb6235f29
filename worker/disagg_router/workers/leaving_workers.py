"""The workers that are not listed any more, or only as such that terminate, as far as they answer.

They are asked because they are the last ones that can serve when a whole deployment is deleted. One
that takes no requests any more, or that has ended, is not asked again.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Mapping

import httpx

from disagg_router.workers.client import WorkerClient
from disagg_router.workers.reserves import is_of_use
from disagg_router.workers.worker_info import Member, Worker, parse_info

log = logging.getLogger(__name__)
# A worker that is of no use, or does not answer, is asked this often.
_LOOKS = 5


class LeavingWorkers:
    """The last `info` of every member that leaves."""

    def __init__(self, client: WorkerClient) -> None:
        self._client = client
        self._workers: dict[str, Worker] = {}
        self._looks: Counter[str] = Counter()
        self._broke: set[str] = set()

    def workers(self) -> list[Worker]:
        return list(self._workers.values())

    def lost(self, incarnation: str) -> None:
        """Drop a worker to which a stream broke, also from the answers of a poll under way."""
        self._broke.add(incarnation)
        self._workers = {name: w for name, w in self._workers.items() if w.incarnation != incarnation}

    async def poll(self, members: Mapping[str, Member], needed: Collection[str], configured: str) -> None:
        """Ask all members once that may be of use."""
        self._workers = {name: w for name, w in self._workers.items() if name in members}
        self._looks = Counter({name: n for name, n in self._looks.items() if name in members})
        asked = [m for name, m in members.items() if self._looks[name] < _LOOKS]
        self._broke.clear()
        await asyncio.gather(*(self._ask(m, m.name in needed, configured) for m in asked))

    async def _ask(self, member: Member, needs: bool, configured: str) -> None:
        try:
            worker = parse_info(member, await self._client.info(member.url, needs=needs), configured)
        except (httpx.HTTPError, httpx.InvalidURL, ValueError):
            worker = None
        if worker is not None and is_of_use(worker) and worker.incarnation not in self._broke:
            if member.name not in self._workers:
                log.info("worker %s leaves, and takes requests while nobody else can", worker.pod)
            self._looks[member.name] = 0
            self._workers[member.name] = worker
            return
        self._looks[member.name] += 1
        self._workers.pop(member.name, None)
