"""The seal on what an operator keeps in the namespaces of others, and believes later.

It is a keyed hash. The key is in a Secret of the operator's own namespace, so that nobody who may
write the ConfigMaps of another namespace can make up a spec that has been accepted.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging

from disagg_operator.controller.decisions_right import Secrets, key_in, key_secret
from disagg_operator.kube.errors import Conflict, Forbidden, NotFound
from disagg_operator.kube.resources import SECRET

log = logging.getLogger(__name__)


class SpecSeal:
    """Knows the key. An operator without a namespace, outside of a cluster, seals nothing."""

    def __init__(self, kube: Secrets, namespace: str, lease_name: str) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = f"{lease_name}-seal"
        self._key: str | None = None
        self._given_up = not namespace
        self._reading = asyncio.Lock()

    async def of(self, *parts: str) -> str | None:
        """Return the seal on some texts; None if this operator has no key. Raises KubeError."""
        async with self._reading:
            if self._key is None and not self._given_up:
                self._key = await self._read()
        if self._key is None:
            return None
        text = "".join(f"{len(part)}:{part}" for part in parts)
        return hmac.new(self._key.encode(), text.encode(), hashlib.sha256).hexdigest()

    async def _read(self) -> str | None:
        """Return the key, which is made if there is none."""
        try:
            found = await self._kube.get(SECRET, self._namespace, self._name)
            if found is None:
                try:
                    found = await self._kube.create(key_secret(self._namespace, self._name))
                except Conflict:  # another operator was faster
                    found = await self._kube.get(SECRET, self._namespace, self._name)
        except (Forbidden, NotFound) as error:
            log.warning("accepted specs are not sealed: %s", error)
            self._given_up = True
            return None
        return key_in(found)
