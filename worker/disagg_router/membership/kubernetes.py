"""The list of workers from EndpointSlices: LIST, then WATCH, with the pod's own service account.

No client library is needed for these two GET requests.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import ssl
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from disagg_router.workers.worker_info import Member
from disagg_wire.labels import LABEL_CANARY, LABEL_DEPLOYMENT, LABEL_POOL

log = logging.getLogger(__name__)
_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_WATCH_S = 120
_BACKOFF_S = (0.5, 10.0)
_WATCH_PAUSE_S = 1.0
# How many slices are remembered of those that are gone.
_MOST_GONE = 64


def members_of(slice_: dict[str, Any], *, terminating: bool = False) -> dict[str, Member]:
    """PURE: Return the addresses of one EndpointSlice by pod name: those that terminate, or the
    others.

    A slice carries the labels of its Service, so it names the pool, and the part of the requests
    that a new revision gets.
    """
    labels = slice_["metadata"].get("labels") or {}
    pool, canary = labels.get(LABEL_POOL), str(labels.get(LABEL_CANARY) or "")
    pools = frozenset([pool] if pool else [])
    port = next((p.get("port") for p in slice_.get("ports") or [] if p.get("name") == "http"), None)
    out: dict[str, Member] = {}
    for endpoint in slice_.get("endpoints") or []:
        name = (endpoint.get("targetRef") or {}).get("name")
        addresses = endpoint.get("addresses") or []
        conditions = endpoint.get("conditions") or {}
        # A terminating worker finishes its streams, but gets no new requests if others take them.
        if port and name and addresses and bool(conditions.get("terminating")) == terminating:
            host = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
            url, ready = f"http://{host}:{port}", conditions.get("ready") is not False
            out[name] = Member(name, url, pools, ready=ready, canary=canary)
    return out


class KubernetesMembership:
    """The workers in the EndpointSlices of the deployment's headless Services in one namespace."""

    def __init__(self, api: str, namespace: str, deployment: str, account: Path = _ACCOUNT) -> None:
        self._path = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        self._selector = f"{LABEL_DEPLOYMENT}={deployment},{LABEL_POOL}"
        self._account = account
        self._api = api
        self._slices: dict[str, dict[str, Member]] = {}
        self._leaving: dict[str, dict[str, Member]] = {}
        self._gone: dict[str, dict[str, Member]] = {}
        self.synced = False

    @property
    def deserted(self) -> bool:
        """Whether there are no Services of workers any more: each has a slice while it exists."""
        return self.synced and not self._slices

    def leaving(self) -> dict[str, Member]:
        """Return the workers that terminate, or whose Service is gone, by name."""
        slices = (*self._gone.values(), *self._leaving.values())
        return {name: member for listed in slices for name, member in listed.items()}

    def members(self) -> dict[str, Member]:
        """Return the members by name; a pod that moves to the other pool is listed by both for a
        moment.
        """
        out: dict[str, Member] = {}
        for slice_ in self._slices.values():
            for name, member in slice_.items():
                known = out.get(name)
                out[name] = (
                    member
                    if known is None
                    else replace(member, pools=known.pools | member.pools, ready=known.ready or member.ready)
                )
        return out

    async def run(self) -> None:
        backoff_s = _BACKOFF_S[0]
        while True:
            try:
                async with self._client() as http:
                    version = await self._list(http)
                    backoff_s = _BACKOFF_S[0]
                    while True:
                        started_s = time.monotonic()
                        version = await self._watch(http, version)
                        # A server, or a proxy in front of it, that ends each watch at once must not
                        # be asked without a pause.
                        await asyncio.sleep(max(0.0, _WATCH_PAUSE_S - (time.monotonic() - started_s)))
            except _Expired as expired:
                log.info("EndpointSlices: %s; listing again", expired)
            except (httpx.HTTPError, ValueError, KeyError, OSError) as error:
                log.warning("EndpointSlices: %s; keeping the workers known", str(error) or type(error).__name__)
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(_BACKOFF_S[1], backoff_s * 2)

    def _client(self) -> httpx.AsyncClient:
        # The token is read for each connection because the kubelet rotates it.
        token = (self._account / "token").read_text(encoding="utf-8").strip()
        context = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        timeout = httpx.Timeout(10.0, read=_WATCH_S + 15.0)
        headers = {"authorization": f"Bearer {token}"}
        return httpx.AsyncClient(base_url=self._api, headers=headers, verify=context, timeout=timeout, trust_env=False)

    async def _list(self, http: httpx.AsyncClient) -> str:
        answer = await http.get(self._path, params={"labelSelector": self._selector}, timeout=10.0)
        answer.raise_for_status()
        content = answer.json()
        for gone in self._slices.keys() - {s["metadata"]["name"] for s in content["items"]}:
            self._drop(gone)
        for listed in content["items"]:
            self._put(listed)
        self.synced = True
        return str(content["metadata"]["resourceVersion"])

    async def _watch(self, http: httpx.AsyncClient, version: str) -> str:
        """Follow changes until the server ends the watch, and return the version to go on from.

        Raises _Expired if a new LIST is needed.
        """
        params: dict[str, str | int] = {
            "labelSelector": self._selector, "watch": "true", "allowWatchBookmarks": "true", "resourceVersion": version,
            "timeoutSeconds": _WATCH_S,
        }  # fmt: skip
        async with http.stream("GET", self._path, params=params) as answer:
            if answer.status_code == 410:
                raise _Expired("410")
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                event = json.loads(line)
                if event["type"] == "ERROR":
                    raise _Expired(str(event["object"].get("message"))[:256])
                metadata = event["object"]["metadata"]
                version = str(metadata["resourceVersion"])
                if event["type"] == "DELETED":
                    self._drop(metadata["name"])
                elif event["type"] in ("ADDED", "MODIFIED"):
                    self._put(event["object"])
        return version

    def _put(self, slice_: dict[str, Any]) -> None:
        name = slice_["metadata"]["name"]
        self._gone.pop(name, None)
        self._slices[name], self._leaving[name] = members_of(slice_), members_of(slice_, terminating=True)

    def _drop(self, name: str) -> None:
        """Note that a slice is gone.

        Its workers may be there for a while: when a deployment is deleted, its Services are gone at
        once, and its pods have time to finish.
        """
        listed = self._slices.pop(name, {}) | self._leaving.pop(name, {})
        if listed:
            self._gone = dict([*self._gone.items(), (name, listed)][-_MOST_GONE:])


class _Expired(Exception):
    """Raised when the server no longer has the history that the watch needs."""
