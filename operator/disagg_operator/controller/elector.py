"""The election of the operator that leads, by a Lease of the API server.

`Elector.run` looks at the Lease, takes and renews it; `leadership` has the rules. The elector has a
client of its own, so that renewals do not wait behind other calls.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from typing import Protocol

from disagg_operator.controller import leadership
from disagg_operator.controller.leadership import Standing, Timing
from disagg_operator.kube.cache import version_of
from disagg_operator.kube.errors import Conflict, Forbidden, KubeError, NotFound
from disagg_operator.kube.resources import LEASE, Resource
from disagg_operator.vocabulary import Obj

log = logging.getLogger(__name__)


class LeaseDoor(Protocol):
    """The calls that an election makes to a cluster. Every method raises KubeError."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None:
        """Return the object, or None if it does not exist."""

    async def create(self, obj: Obj) -> Obj:
        """Create an object. Raises Conflict if it exists."""

    async def replace(self, obj: Obj) -> Obj:
        """Replace an object. Raises Conflict if it has changed since it was read."""


class Leadership(Protocol):
    """What the runtime needs to know of an election."""

    async def gained(self) -> None:
        """Wait until this process leads."""

    async def lost(self) -> None:
        """Wait until this process does not lead any more."""

    def write_within_s(self) -> float:
        """Return the seconds in which a write that begins now must end; 0 if none may begin."""

    def refused(self) -> str | None:
        """Return why this process can't take part in the election, or None."""

    async def restored(self) -> None:
        """Wait until the API server's data turn out to be those of a backup."""


class Alone:
    """The leadership of an operator that has no Lease, because it is the only one."""

    async def gained(self) -> None:
        return

    async def lost(self) -> None:
        await asyncio.Event().wait()

    def write_within_s(self) -> float:
        return math.inf

    def refused(self) -> str | None:
        return None

    async def restored(self) -> None:
        await asyncio.Event().wait()


class Elector:
    """A candidate. `clock` is monotonic; `wall` returns the time as a Lease shows it."""

    def __init__(
        self,
        kube: LeaseDoor,
        *,
        namespace: str,
        name: str,
        me: str,
        timing: Timing,
        clock: Callable[[], float],
        wall: Callable[[], str],
        chance: Callable[[], float],
    ) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = name
        self._me = me
        self._timing = timing
        self._clock = clock
        self._wall = wall
        self._chance = chance
        self._standing = Standing()
        self._lease: Obj | None = None
        self._changed = asyncio.Event()
        self._refused: str | None = None
        # The newest version of the Lease that was seen. Versions of the API server only grow.
        self._newest = 0
        self._restored = asyncio.Event()

    def refused(self) -> str | None:
        return self._refused

    def write_within_s(self) -> float:
        return leadership.write_within_s(self._standing, self._timing, self._clock())

    async def gained(self) -> None:
        while not self._leads():
            self._changed.clear()
            await self._changed.wait()

    async def restored(self) -> None:
        await self._restored.wait()
        self._restored.clear()

    async def lost(self) -> None:
        """Wait until the deadline of the last renewal has passed, or somebody else leads."""
        while self._leads():
            self._changed.clear()
            renewed_s = self._standing.renewed_s or 0.0
            try:
                async with asyncio.timeout(renewed_s + self._timing.renew_deadline_s - self._clock()):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def run(self) -> None:
        """Take and renew the Lease until cancelled. A failure of a call is logged and repeated."""
        while True:
            led, refused = self._leads(), None
            try:
                # A look that hangs must leave time for another one before the deadline.
                async with asyncio.timeout(self._timing.renew_deadline_s / 2):
                    await self._look()
            except (KubeError, TimeoutError) as error:
                log.warning("lease %s/%s: %s", self._namespace, self._name, error or "no answer")
                refused = f"the Lease can't be used: {error}" if isinstance(error, Forbidden | NotFound) else None
            except Exception:
                log.exception("lease %s/%s", self._namespace, self._name)
            self._refused = refused
            if led != self._leads():
                log.info("%s %s the lease %s/%s", self._me, "lost" if led else "holds", self._namespace, self._name)
            self._changed.set()
            now_s = self._clock()
            pause_s = leadership.next_look_s(self._standing, self._me, self._timing, now_s, self._chance())
            await asyncio.sleep(pause_s)

    async def release(self) -> None:
        """Give the Lease back, if it is ours. From then on this process writes nothing.

        `run` must have ended.
        """
        led, self._standing = self._leads(), Standing()
        self._changed.set()
        if not led:
            return
        try:
            async with asyncio.timeout(self._timing.renew_deadline_s / 2):
                # The answer to the last renewal may have been lost, so the Lease is read again.
                lease = await self._kube.get(LEASE, self._namespace, self._name)
                if lease is not None and leadership.holder_of(lease) == self._me:
                    await self._kube.replace(leadership.released(lease, self._wall()))
        except (KubeError, TimeoutError) as error:
            log.warning("lease %s/%s is not given back: %s", self._namespace, self._name, error or "no answer")

    def _leads(self) -> bool:
        return leadership.leads(self._standing, self._timing, self._clock())

    async def _look(self) -> None:
        if self._standing.renewed_s is not None and self._lease is not None:
            try:  # who leads knows the Lease, so a renewal is a single call
                await self._write(self._lease)
                return
            except Conflict:
                pass
        self._lease = await self._kube.get(LEASE, self._namespace, self._name)
        self._note(self._lease)
        self._standing = leadership.seen(self._standing, self._lease, self._me, self._clock())
        if leadership.may_take(self._standing, self._me, self._clock()):
            try:
                await self._write(self._lease)
            except Conflict:
                log.debug("another candidate was faster")

    async def _write(self, lease: Obj | None) -> None:
        begun_s = self._clock()
        wanted = leadership.taken(lease, self._namespace, self._name, self._me, self._timing, self._wall())
        stored = await (self._kube.create(wanted) if lease is None else self._kube.replace(wanted))
        self._lease = stored
        self._note(stored)
        self._standing = leadership.won(stored, self._me, self._timing, begun_s)

    def _note(self, lease: Obj | None) -> None:
        """Note the version of the Lease. An older one than before is that of a backup."""
        version = 0 if lease is None else version_of(lease)
        if 0 < version < self._newest:
            log.warning("lease %s/%s is older than before: the data are those of a backup", self._namespace, self._name)
            self._restored.set()
        self._newest = version or self._newest
