"""Looks at the objects that resources refer to, again and again, and wakes a resource on a change.

The operator may get a Secret by name, but neither list nor watch Secrets, and it needs no more than
that here. Each object is read once, however many resources name it. All are read within 8 s, unless
there are so many that the bound on the reads of one look delays them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from disagg_operator.api import DisaggDeployment
from disagg_operator.api.violation import Violation
from disagg_operator.controller.references import NamedObject, Reference, Sight, missing, references_of, sight_of
from disagg_operator.kube.client import Kube
from disagg_operator.kube.errors import Forbidden, KubeError
from disagg_operator.kube.resources import NETWORK_ATTACHMENT
from disagg_operator.vocabulary import Key

log = logging.getLogger(__name__)

MULTUS_ABSENT = "MultusAbsent"
REFERENCE_INTERVAL_S = 4.0
_FRESH_S = 10.0
_MOST_READS = 80
_AT_ONCE = 4
_ATTACHMENT_FIELD = "spec.kvTransfer.network.attachment"
_RAILS_FIELD = "spec.kvTransfer.network.rails"


class ReferenceWatch:
    """The references of all resources, and what is known of their targets."""

    def __init__(self, kube: Kube, wake: Callable[[Key], None], clock: Callable[[], float]) -> None:
        self._kube = kube
        self._wake = wake
        self._clock = clock
        self._wanted: dict[Key, tuple[Reference, ...]] = {}
        self._seen: dict[NamedObject, tuple[Sight | None, float]] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)

    async def missing(self, key: Key, dd: DisaggDeployment, *, further: bool = False) -> list[Violation]:
        """Return the references of a resource that lead nowhere, and keep an eye on all of them.

        `further` references are looked at beside those of the last call. Raises KubeError.
        """
        references = references_of(dd)
        wanted = (*self._wanted.get(key, ()), *references) if further else references
        if wanted:
            self._wanted[key] = tuple(dict.fromkeys(wanted))
        else:
            self._wanted.pop(key, None)
        now_s = self._clock()
        for target in {ref.target for ref in references}:
            if target not in self._seen or now_s - self._seen[target][1] > _FRESH_S:
                self._seen[target] = await self._sight(target), now_s
        found = missing(references, {ref.target: self._seen[ref.target][0] for ref in references})
        network = dd.spec.kv_transfer.network
        if network is not None and not await self._kube.has_api(NETWORK_ATTACHMENT):
            words = "the cluster has no NetworkAttachmentDefinition API: install Multus"
            path = _ATTACHMENT_FIELD if network.attachment_ref is None else f"{_ATTACHMENT_FIELD}Ref"
            path = _RAILS_FIELD if network.rails else path
            return [Violation(path, words, MULTUS_ABSENT), *(v for v in found if not v.path.startswith(path))]
        return found

    def forget(self, key: Key) -> None:
        """Forget a resource that is gone."""
        self._wanted.pop(key, None)

    def forget_all(self) -> None:
        """Forget all resources. Each is noted again when it is judged."""
        self._wanted.clear()
        self._seen.clear()

    async def look(self) -> None:
        """Read the targets that were read longest ago, and wake the resources of changed ones."""
        wanted: dict[NamedObject, list[Key]] = {}
        for key, references in self._wanted.items():
            for ref in references:
                wanted.setdefault(ref.target, []).append(key)
        self._seen = {target: seen for target, seen in self._seen.items() if target in wanted}
        oldest = sorted(wanted, key=lambda target: self._seen.get(target, (None, -1.0))[1])[:_MOST_READS]
        for target, changed in zip(oldest, await asyncio.gather(*map(self._changed, oldest)), strict=True):
            for key in wanted[target] if changed else ():
                self._wake(key)

    async def _changed(self, target: NamedObject) -> bool:
        before = self._seen.get(target, (None, 0.0))[0]
        async with self._gate:
            try:
                now = await self._sight(target)
            except KubeError as error:
                log.debug("%s: %s", target.name, error)
                return False
        self._seen[target] = now, self._clock()
        return now != before

    async def _sight(self, target: NamedObject) -> Sight | None:
        """Return what a target looks like, or None if the operator may not read it."""
        try:
            return sight_of(await self._kube.get(target.resource, target.namespace or None, target.name))
        except Forbidden as error:
            log.debug("%s %s can't be read: %s", target.resource.kind, target.name, error)
            return None
        except ValueError:
            return Sight(exists=False)  # no name of an object
