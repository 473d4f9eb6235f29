"""The right to read recorded decisions: that to get one Secret of the operator's namespace.

The API server's proxy does not say who asks through it, so it is a key in that Secret that counts.
The leading operator makes the Secret when it is asked for the first time. An operator without a
Lease, which runs outside of a cluster, answers its own machine alone.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac
import ipaddress
import logging
import secrets
from collections.abc import Callable
from typing import Protocol

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import SECRET, Resource
from disagg_operator.vocabulary import Obj

log = logging.getLogger(__name__)
KEY_HEADER = "X-Disagg-Decisions-Key"
_FIELD = "key"
# Strangers may ask as often as they like, the API server is asked this often.
_READ_AGAIN_S = 5.0
_DEADLINE_S = 5.0
# A key that is not in the Secret any more is valid for so long.
_VALID_S = 60.0


def secret_name(lease_name: str) -> str:
    """Return the name of the Secret, by that of the Lease of the operators."""
    return f"{lease_name}-decisions"


def key_in(secret: Obj | None) -> str | None:
    """Return the key that a Secret holds, or None."""
    try:
        key = base64.b64decode(str(((secret or {}).get("data") or {}).get(_FIELD, "")), validate=True).decode()
    except (binascii.Error, ValueError, UnicodeDecodeError):
        return None
    return key if len(key) >= 32 else None


class Secrets(Protocol):
    """The part of `kube.Kube` that is needed here."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Obj | None: ...

    async def create(self, obj: Obj) -> Obj: ...


class DecisionsRight:
    """Knows the key. `clock` is monotonic."""

    def __init__(self, kube: Secrets, namespace: str, lease_name: str, clock: Callable[[], float]) -> None:
        self._kube = kube
        self._namespace = namespace
        self._name = secret_name(lease_name)
        self._clock = clock
        self._key: str | None = None
        self._read_at: float | None = None
        self._reading = asyncio.Lock()

    async def has(self, given: str, peer: str | None) -> bool:
        """Return whether a request with this key, from this address, may read decisions."""
        if not self._namespace:
            return _is_own_machine(peer)
        if self._read_at is None or self._clock() - self._read_at >= _VALID_S:
            await self._read()
        if not self._matches(given):
            await self._read()
        return self._matches(given)

    def _matches(self, given: str) -> bool:
        return self._key is not None and hmac.compare_digest(given.encode(errors="replace"), self._key.encode())

    async def _read(self) -> None:
        """Read the key, and make it if there is none."""
        async with self._reading:
            if self._read_at is not None and self._clock() - self._read_at < _READ_AGAIN_S:
                return
            self._read_at = self._clock()
            try:
                async with asyncio.timeout(_DEADLINE_S):
                    found = await self._kube.get(SECRET, self._namespace, self._name)
                    if found is None:
                        found = await self._kube.create(key_secret(self._namespace, self._name))
                self._key = key_in(found)
            except (KubeError, TimeoutError) as error:
                log.info("the Secret %s/%s is neither read nor made now: %s", self._namespace, self._name, error)


def key_secret(namespace: str, name: str) -> Obj:
    """Return a Secret with a new key."""
    content = base64.b64encode(secrets.token_hex(32).encode()).decode()
    return {
        "apiVersion": SECRET.api_version,
        "kind": SECRET.kind,
        "metadata": {"name": name, "namespace": namespace},
        "type": "Opaque",
        "data": {_FIELD: content},
    }


def _is_own_machine(peer: str | None) -> bool:
    try:
        return peer is not None and ipaddress.ip_address(peer).is_loopback
    except ValueError:
        return False
