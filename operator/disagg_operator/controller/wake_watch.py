"""Waits for the requests that deployments at zero get.

A router answers its poll as soon as a request asks for workers that do not exist, so that they are
made at once and not with the next look at all pods. Only routers of deployments at zero are polled,
and only so many at a time.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

import httpx

from disagg_operator.autoscaling.live import Live, LiveTable
from disagg_operator.autoscaling.signals.direct import Target, parse_json_object
from disagg_operator.autoscaling.zero_watch import cold_start_s
from disagg_operator.desired.names import pool_name
from disagg_operator.desired.pool_marks import at_zero
from disagg_operator.kube.cache import Cache
from disagg_operator.kube.pods import address_of, http_port, identity_of, sort_pods
from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, DISAGG_POOL, uid_of
from disagg_operator.vocabulary import Key
from disagg_wire.ports import ROUTER_PORT
from disagg_wire.protocol import DEMAND_PATH
from disagg_wire.roles import ROLES

log = logging.getLogger(__name__)

_LOOK_S = 0.5
_MOST_POLLS = 256
# How long a router may think about a poll, and how much longer its answer may take.
_WAIT_S, _LEAST_WAIT_S, _MORE_S = 25.0, 1.0, 5.0
_RETRY_S = (1.0, 10.0)
_MOST_BYTES = 4096

_Poll = tuple[Key, str]


class WakeWatch:
    """The polls of all routers of deployments at zero. `wake` is called for a key at once."""

    def __init__(
        self,
        cache: Cache,
        live: LiveTable,
        bearer_of: Callable[[Key], Awaitable[str | None]],
        wake: Callable[[Key], None],
    ) -> None:
        self._cache = cache
        self._live = live
        self._bearer_of = bearer_of
        self._wake = wake
        self._gate = asyncio.Semaphore(_MOST_POLLS)
        self._polls: dict[_Poll, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Poll until cancelled."""
        timeout = httpx.Timeout(_WAIT_S + _MORE_S)
        limits = httpx.Limits(max_connections=_MOST_POLLS, max_keepalive_connections=_MOST_POLLS)
        async with httpx.AsyncClient(follow_redirects=False, trust_env=False, limits=limits, timeout=timeout) as http:
            try:
                while True:
                    self._follow(http)
                    await asyncio.sleep(_LOOK_S)
            finally:
                polls = list(self._polls.values())
                self._polls.clear()
                for poll in polls:
                    poll.cancel()
                await asyncio.gather(*polls, return_exceptions=True)

    def _follow(self, http: httpx.AsyncClient) -> None:
        """Begin the polls that are missing, and end those that are not needed any more."""
        wanted = dict(self._targets())
        for poll in [p for p, task in self._polls.items() if p not in wanted or task.done()]:
            self._polls.pop(poll).cancel()
        for poll, target in wanted.items():
            if poll not in self._polls:
                self._polls[poll] = asyncio.create_task(self._poll(http, poll[0], target))

    def _targets(self) -> Iterator[tuple[_Poll, Target]]:
        """Yield the routers of the deployments at zero."""
        keys, pods = self._cache.keys(), None
        for key in keys:
            pools = (self._cache.get(DISAGG_POOL, (key[0], pool_name(key[1], role))) for role in ROLES)
            if not at_zero(pools):
                continue
            pods = self._cache.pods_by_deployment() if pods is None else pods
            # A router that is ending has not handed over the requests that it holds.
            for pod in filter(address_of, sort_pods(pods.get(key, [])).live_routers):
                target = Target(identity_of(pod), address_of(pod), http_port(pod, ROUTER_PORT), DEMAND_PATH)
                yield (key, target.pod), target

    def _entry(self, key: Key) -> Live | None:
        resource = self._cache.get(DISAGG_DEPLOYMENT, key)
        return None if resource is None else self._live.of(key, uid_of(resource))

    async def _poll(self, http: httpx.AsyncClient, key: Key, target: Target) -> None:
        cursor, retry_s = "", _RETRY_S[0]
        while (entry := self._entry(key)) is not None:
            if entry.bearer is None:
                entry.bearer = await self._bearer_of(key)
            async with self._gate:
                asked_s = time.monotonic()
                found = await self._ask(http, replace(target, bearer=entry.bearer), cursor, cold_start_s(entry))
            if found is None:
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, _RETRY_S[1])
                continue
            retry_s = _RETRY_S[0]
            wanted, cursor = found
            # Said once: a reconcile that fails is tried again in its own time.
            if wanted and not entry.wake:
                log.info("%s/%s: a request waits for workers", *key)
                entry.wake = True
                self._wake(key)
            # Also a router that answers at once is not asked all the time.
            await asyncio.sleep(max(0.0, asked_s + retry_s - time.monotonic()))

    async def _ask(
        self, http: httpx.AsyncClient, target: Target, cursor: str, starts_s: float | None
    ) -> tuple[bool, str] | None:
        """Return whether workers are wanted, and the next cursor; None if there was no answer."""
        wait_s = max(_LEAST_WAIT_S, _WAIT_S * min(1.0, _MOST_POLLS / max(1, len(self._polls))))
        params: dict[str, str] = {"wait_s": f"{wait_s:g}", "cursor": cursor}
        if starts_s is not None:
            params["cold_start_s"] = f"{starts_s:.1f}"
        headers = {"Authorization": f"Bearer {target.bearer}"} if target.bearer else {}
        body = b""
        try:
            async with (
                asyncio.timeout(wait_s + _MORE_S),
                http.stream("GET", target.url(), params=params, headers=headers) as response,
            ):
                if response.status_code != 200:
                    return None
                async for chunk in response.aiter_bytes():
                    body += chunk
                    if len(body) > _MOST_BYTES:
                        return None
        except (httpx.HTTPError, TimeoutError, ValueError):
            return None
        answer = parse_json_object(body.decode("utf-8", errors="replace"))
        return None if answer is None else (answer.get("wanted") is True, str(answer.get("cursor", ""))[:64])
