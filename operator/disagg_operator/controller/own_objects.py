"""Looks at the own objects that may not be watched, and has them made again if they are missing.

These are the Secret with the cluster key and the ConfigMaps with the accepted spec and the scaling
state. The operator may get them by name, but neither list nor watch them: that would show it those
of everybody. Each is compared with what this process has written or read before.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable

from disagg_operator.autoscaling.live import LiveTable
from disagg_operator.autoscaling.state_keeper import StateKeeper
from disagg_operator.controller.accepted_specs import SpecsInConfigMaps
from disagg_operator.controller.views import Views
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, uid_of
from disagg_operator.vocabulary import Key

log = logging.getLogger(__name__)

# With 40 resources or fewer each is looked at every time, and with 300 every half a minute.
OWN_INTERVAL_S = 4.0
_MOST_RESOURCES = 40
_AT_ONCE = 4


class OwnObjects:
    """The own objects of all resources that are not watched."""

    def __init__(
        self,
        cache: Cache,
        live: LiveTable,
        views: Views,
        specs: SpecsInConfigMaps,
        states: StateKeeper,
        wake: Callable[[Key], None],
    ) -> None:
        self._cache = cache
        self._live = live
        self._views = views
        self._specs = specs
        self._states = states
        self._wake = wake
        self._last: Key = ("", "")

    async def look(self) -> None:
        """Look at those of the next resources."""
        gate, chosen = asyncio.Semaphore(_AT_ONCE), next_ones(self._cache.keys(), self._last, _MOST_RESOURCES)
        if not chosen:
            return
        self._last = chosen[-1]

        async def at(key: Key) -> None:
            async with gate:
                try:
                    await self._look_at(key)
                except KubeError as error:
                    log.debug("%s/%s: %s", *key, error)

        await asyncio.gather(*map(at, chosen))

    async def _look_at(self, key: Key) -> None:
        resource = self._cache.get(DISAGG_DEPLOYMENT, key)
        if resource is None or resource["metadata"].get("deletionTimestamp"):
            return
        secret, spec = await self._views.secret_is_lost(key), await self._specs.is_lost(key)
        if secret or spec:
            log.info("%s/%s: %s to be made again", *key, "the Secret is" if secret else "the accepted spec is")
            self._views.doubt((key,))
            self._wake(key)
        await self._states.look(key, self._live.of(key, uid_of(resource)))


def next_ones(keys: Iterable[Key], last: Key, most: int) -> list[Key]:
    """Return up to `most` keys in their turn: those after the `last` one come first."""
    every = sorted(keys)
    later = [key for key in every if key > last]
    return [*later, *every[: len(every) - len(later)]][:most]
