"""The recorder, which sends Events about a DisaggDeployment and never fails a reconcile."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import KubeError
from disagg_operator.status.events import EventLimiter, Note, event_object
from disagg_operator.vocabulary import Obj

log = logging.getLogger(__name__)


class Recorder:
    """A recorder that sends notes as Events to the API server.

    A failure is logged and not retried, because an Event is not state.
    """

    def __init__(
        self, kube: Kube, clock: Callable[[], float], wall: Callable[[], str], new_id: Callable[[], str]
    ) -> None:
        self._kube = kube
        self._clock = clock
        self._wall = wall
        self._new_id = new_id
        self._limiter = EventLimiter()

    async def send(self, about: Obj, notes: Sequence[Note]) -> None:
        """Send those of the notes about an object that the limiter allows."""
        for note in notes:
            if not self._limiter.allows(str(about["metadata"].get("uid", "")), note, self._clock()):
                continue
            try:
                await self._kube.create_event(event_object(about, note, self._wall(), self._new_id()))
            except KubeError as error:
                log.warning("event %s not sent: %s", note.reason, error)
