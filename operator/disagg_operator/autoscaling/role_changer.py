"""A client that tells workers to change their role, and waits until they have done so.

The number of role changes at once is bounded, and every wait has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace

from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.autoscaling.signals.direct import DirectDoor, Target
from disagg_operator.vocabulary import Key
from disagg_wire.protocol import ROLE_PATH

log = logging.getLogger(__name__)

_ASK_EVERY_S = 0.5
_DRAIN_S = 60.0
_GIVE_UP_S = 90.0
_MOST = 32


class RoleChanger:
    """Changes the roles of workers of all deployments. `clock` is monotonic.

    It asks workers only while `may_act` says so.
    """

    def __init__(
        self,
        direct: DirectDoor,
        wake: Callable[[Key], None],
        clock: Callable[[], float],
        may_act: Callable[[], bool] = lambda: True,
    ) -> None:
        self._direct = direct
        self._wake = wake
        self._clock = clock
        self._may_act = may_act
        self._tasks: dict[tuple[Key, str], asyncio.Task[None]] = {}

    def busy_with(self, key: Key, pod: str) -> bool:
        """Return whether a worker's role is being changed."""
        return (key, pod) in self._tasks

    def begin(self, key: Key, entry: Live, flip: Flip, target: Target) -> None:
        """Begin a role flip. `entry.flip` shows its progress."""
        if len(self._tasks) < _MOST and not self.busy_with(key, flip.pod):
            entry.flip = flip
            self._start(key, flip.pod, self._move(key, entry, flip, target))

    def ask_back(self, key: Key, pod: str, role: str, target: Target) -> None:
        """Ask a worker back to the role of its pool.

        Its role differs because its container restarted, or because the operator ended between two
        steps of a role flip.
        """
        if len(self._tasks) < _MOST and not self.busy_with(key, pod):
            log.info("%s/%s: worker %s is asked back to its pool's role, %s", *key, pod, role)
            self._start(key, pod, self._ask_back(target, role))

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def _start(self, key: Key, pod: str, work: object) -> None:
        assert asyncio.iscoroutine(work)
        task = asyncio.create_task(work, name=f"role of {pod}")
        self._tasks[key, pod] = task
        task.add_done_callback(lambda _: self._tasks.pop((key, pod), None))

    async def _ask_back(self, target: Target, role: str) -> None:
        await self._until_changed(target, role)

    async def _move(self, key: Key, entry: Live, flip: Flip, target: Target) -> None:
        log.info("%s/%s: worker %s begins a role flip from %s to %s", *key, flip.pod, flip.giving, flip.taking)
        flip.changed = await self._until_changed(target, flip.taking)
        if not flip.changed:
            log.warning("%s/%s: worker %s did not become %s", *key, flip.pod, flip.taking)
            entry.flip = None
        self._wake(key)

    async def _until_changed(self, target: Target, role: str) -> bool:
        """Ask a worker until its role has changed, and return whether it has.

        It is asked again after 202, 409, 503 or no answer; any other answer but 200 ends the
        attempt.
        """
        at = replace(target, path=ROLE_PATH)
        until_s = self._clock() + _GIVE_UP_S
        while self._clock() < until_s and self._may_act():
            status = await self._direct.post(at, {"role": role, "deadline_s": _DRAIN_S})
            if status == 200:
                return True
            if status is not None and status not in (202, 409, 503):
                return False
            await asyncio.sleep(_ASK_EVERY_S)
        return False
