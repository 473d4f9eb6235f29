"""Door: a Prometheus that the user runs, by prometheus-api-client.

That client is synchronous, so it runs in two threads of its own and every query has a deadline; a Prometheus that hangs costs
at most these threads. For deployment NAME in namespace NS (series need the usual `namespace` and `pod` labels) one query reads what the
pods last reported, with the times at which they did:

    {namespace="NS", pod=~"NAME-(router|prefill|decode)-[a-z0-9]+-[a-z0-9]+", __name__=~"disagg_router_...|disagg_worker_..."}[75s]

The raw samples go the same way as those of a direct scrape: counters are differenced for each pod, old values are no values, an empty
answer means "unknown", never zero. The days before are read minute by minute from sums of increases (`history_queries`).
"""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException
from requests import RequestException
from urllib3.util.retry import Retry

from disagg_operator.autoscaling.history import Minute
from disagg_operator.autoscaling.signals.samples import ROUTER_METRICS, WORKER_METRICS, Sample, from_matrix

# Two scrapes of the usual 30 s, and a little.
MAX_AGE_S = 75
HISTORY_DAYS = 3
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_FAILURES = (RequestException, PrometheusApiClientException, TimeoutError, ValueError, KeyError, TypeError)


def samples_query(namespace: str, name: str) -> str:
    """What every pod of a deployment last reported. Raises ValueError for a name that could break out of the quotes."""
    pods = f'namespace="{_checked(namespace)}",pod=~"{_checked(name)}-(router|prefill|decode)-[a-z0-9]+-[a-z0-9]+"'
    return f'{{{pods},__name__=~"{"|".join((*ROUTER_METRICS, *WORKER_METRICS))}"}}[{MAX_AGE_S}s]'


def history_queries(namespace: str, name: str) -> tuple[str, str, str]:
    """Requests, prompt and output tokens of a minute, by the mean of two (scrapes may be a minute apart). Raises ValueError as above."""
    pods = f'namespace="{_checked(namespace)}",pod=~"{_checked(name)}-router-[a-z0-9]+-[a-z0-9]+"'
    sums = ("disagg_router_arrivals_total", "disagg_router_arrived_prompt_tokens_total")
    requests, prompt = (f"sum(increase({metric}{{{pods}}}[2m]))/2" for metric in sums)
    return requests, prompt, f'sum(increase(disagg_router_completed_tokens_total{{{pods},kind="output"}}[2m]))/2'


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a DNS label: {name[:80]!r}")
    return name


class PrometheusDoor:
    """Reads deployments from Prometheus servers, by URL."""

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

    async def read(self, url: str, namespace: str, name: str, now_s: float) -> dict[str, Sample] | None:
        """What Prometheus knows of a deployment's pods, by pod, with epoch times; None when it does not answer."""
        query = samples_query(namespace, name)
        answer = await self._in_thread(lambda: self._connection(url).custom_query(query, timeout=self._timeout_s))
        return from_matrix(answer, now_s, MAX_AGE_S)

    async def history(self, url: str, namespace: str, name: str, now_s: float) -> list[Minute]:
        """The minutes of the last days in which something came, oldest first; [] when there are none or it does not answer."""
        end = datetime.datetime.fromtimestamp(now_s - now_s % 60, datetime.UTC)
        start = end - datetime.timedelta(days=HISTORY_DAYS)
        columns = []
        for query in history_queries(namespace, name):
            columns.append(_series(await self._in_thread(self._range(url, query, start, end))))
        requests, prompt, output = columns
        return [Minute(t, requests[t], prompt.get(t, 0.0), output.get(t, 0.0)) for t in sorted(requests) if requests[t] > 0]

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        try:
            async with self._gate, asyncio.timeout(self._timeout_s + 1.0):
                return await asyncio.get_running_loop().run_in_executor(self._executor, call)
        except _FAILURES:
            return None

    def _range(self, url: str, query: str, start: datetime.datetime, end: datetime.datetime) -> Callable[[], Any]:
        return lambda: self._connection(url).custom_query_range(query, start, end, "60", timeout=self._timeout_s)

    def _connection(self, url: str) -> Any:
        if url not in self._connections:
            if len(self._connections) >= 64:  # one a CR at most; a bound all the same
                self._connections.clear()
            self._connections[url] = self._connect(url)
        return self._connections[url]


def _series(answer: Any) -> dict[float, float]:
    """The values of a range answer of at most one series, by time; what is no number is left out."""
    out: dict[float, float] = {}
    try:
        for at_s, text in answer[0]["values"] if answer else ():
            value = float(text)
            if value >= 0 and value != float("inf"):
                out[float(at_s)] = value
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return out
