"""Door: a Prometheus that the user runs, by prometheus-api-client.

That client is synchronous, so it runs in two threads of its own and every query has a deadline; a Prometheus that hangs costs
at most these threads. Queries, for a pool P of deployment NAME in namespace NS (series need the usual `namespace` and `pod` labels):

    per pod:  sum by (pod) (disagg_worker_waiting_requests{S}) + sum by (pod) (disagg_worker_running_requests{S} and FRESH)
              S = namespace="NS", pod=~"NAME-P-[a-z0-9]+-[a-z0-9]+"
    router:   sum(disagg_router_waiting_requests{namespace="NS", pod=~"NAME-router-...", pool="P"} and FRESH)
    FRESH     time() - timestamp(series) < 30: an instant query answers with values up to five minutes old, and a pod that is gone
              must not look as busy or as idle as it was.

An empty answer means "unknown", never zero.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests import RequestException
from urllib3.util.retry import Retry

from disagg_operator.autoscaling.signals.reading import (
    ROUTER_WAITING,
    WORKER_RUNNING,
    WORKER_WAITING,
    PoolReading,
    vector_by_pod,
    vector_single,
)

MAX_AGE_S = 30
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


def worker_query(namespace: str, name: str, pool: str) -> str:
    """Requests per pod of a pool. Raises ValueError for a name that could break out of the quotes."""
    selector = f'namespace="{_checked(namespace)}",pod=~"{_checked(name)}-{_checked(pool)}-[a-z0-9]+-[a-z0-9]+"'
    running = f"{WORKER_RUNNING}{{{selector}}}"
    return f"sum by (pod) ({WORKER_WAITING}{{{selector}}}) + sum by (pod) ({running} and (time() - timestamp({running}) < {MAX_AGE_S}))"


def router_query(namespace: str, name: str, pool: str) -> str:
    """Requests that wait in the routers for a pool. Raises ValueError as above."""
    series = (
        f'{ROUTER_WAITING}{{namespace="{_checked(namespace)}",pod=~"{_checked(name)}-router-[a-z0-9]+-[a-z0-9]+",pool="{_checked(pool)}"}}'
    )
    return f"sum({series} and (time() - timestamp({series}) < {MAX_AGE_S}))"


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a DNS label: {name[:80]!r}")
    return name


class PrometheusDoor:
    """Reads pools from Prometheus servers, by URL."""

    def __init__(self, *, timeout_s: float = 4.0, connect: Callable[[str], Any] | None = None) -> None:
        self._timeout_s = timeout_s
        self._connect = connect or self._new_connection
        self._connections: dict[str, Any] = {}
        self._executor = ThreadPoolExecutor(max_workers=2, thread_name_prefix="prometheus")
        self._gate = asyncio.Semaphore(2)  # so that a query's deadline doesn't run while it queues for a thread

    def _new_connection(self, url: str) -> PrometheusConnect:
        return PrometheusConnect(url=url, retry=Retry(total=0), timeout=self._timeout_s)

    def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)

    async def read(self, url: str, namespace: str, name: str, pool: str) -> PoolReading | None:
        """What Prometheus knows of a pool; None when it does not answer or knows nothing of its pods and routers."""
        by_pod, waiting = await asyncio.gather(
            self._query(url, worker_query(namespace, name, pool)),
            self._query(url, router_query(namespace, name, pool)),
        )
        pods = vector_by_pod(by_pod)
        return None if pods is None else PoolReading(pods, vector_single(waiting))

    async def _query(self, url: str, query: str) -> Any:
        loop = asyncio.get_running_loop()
        try:
            async with self._gate, asyncio.timeout(self._timeout_s + 1.0):
                return await loop.run_in_executor(self._executor, self._blocking_query, url, query)
        except (RequestException, PrometheusApiClientException, TimeoutError, ValueError, KeyError, TypeError):
            return None

    def _blocking_query(self, url: str, query: str) -> Any:
        if url not in self._connections:
            if len(self._connections) >= 64:  # one a CR at most; a bound all the same
                self._connections.clear()
            self._connections[url] = self._connect(url)
        return self._connections[url].custom_query(query, timeout=self._timeout_s)
