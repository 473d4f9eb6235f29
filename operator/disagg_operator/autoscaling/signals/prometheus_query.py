"""A client of the user's Prometheus, based on prometheus-api-client.

That library is synchronous. It runs in its own threads, which only wait, and sends its requests
through `Transport`, where every request has a deadline. For deployment NAME in namespace NS one
query reads the last samples of the pods with their times (series need the usual labels `namespace`
and `pod`):

    {namespace="NS", pod=~"NAME-(router|prefill|decode)(-[0-9a-f]{10})?-[a-z0-9]+-[a-z0-9]+",
     __name__=~"disagg_router_...|disagg_worker_..."}[75s]

The raw samples are processed like those of a direct scrape: counters are differenced for each pod,
old values are dropped, and an empty answer means "unknown", never zero. The previous days are read
minute by minute from sums of increases (`history_queries`).
"""

from __future__ import annotations

import asyncio
import datetime
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import requests
from prometheus_api_client import PrometheusConnect
from prometheus_api_client.exceptions import PrometheusApiClientException

from disagg_operator.autoscaling.policy.history import Minute
from disagg_operator.autoscaling.signals.prometheus_access import PATH, PrometheusEndpoint, Unreadable
from disagg_operator.autoscaling.signals.prometheus_transport import Adapter, Lease, Transport
from disagg_operator.autoscaling.signals.samples import Sample, from_matrix
from disagg_wire import series
from disagg_wire.series import READ_OF_ROUTERS, READ_OF_WORKERS

# Two scrapes at the usual interval of 30 s, and some tolerance.
MAX_AGE_S = 75
HISTORY_DAYS = 3
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_AT_ONCE = 16
_NONSENSE = f"what the server answers is not a Prometheus's; see {PATH}.url"


def samples_query(namespace: str, name: str) -> str:
    """Return the query for the last samples of all pods of a deployment.

    Raises ValueError for a name that could break out of the quotes.
    """
    # Workers of a later revision than the first one have it in their names.
    pods = (
        f'namespace="{_checked(namespace)}",'
        f'pod=~"{_checked(name)}-(router|prefill|decode)(-[0-9a-f]{{10}})?-[a-z0-9]+-[a-z0-9]+"'
    )
    return f'{{{pods},__name__=~"{"|".join((*READ_OF_ROUTERS, *READ_OF_WORKERS))}"}}[{MAX_AGE_S}s]'


def pods_query(namespace: str, pods: Iterable[str], names: Iterable[str]) -> str:
    """Return the query for the last samples of some series of pods of any name.

    Raises ValueError for a name that could break out of the quotes.
    """
    which = "|".join(".".join(map(_checked, pod.split("."))).replace(".", "[.]") for pod in pods)
    return f'{{namespace="{_checked(namespace)}",pod=~"{which}",__name__=~"{"|".join(names)}"}}[{MAX_AGE_S}s]'


def history_queries(namespace: str, name: str) -> tuple[str, str, str]:
    """Return the queries for the requests, prompt tokens and output tokens of a minute.

    Each is a mean over two minutes, because scrapes may be a minute apart. Raises ValueError like
    `samples_query`.
    """
    pods = f'namespace="{_checked(namespace)}",pod=~"{_checked(name)}-router-[a-z0-9]+-[a-z0-9]+"'
    sums = (series.ROUTER_ARRIVALS, series.ROUTER_ARRIVED_PROMPT_TOKENS)
    requests, prompt = (f"sum(increase({metric}{{{pods}}}[2m]))/2" for metric in sums)
    return (
        requests,
        prompt,
        f'sum(increase({series.ROUTER_COMPLETED_TOKENS}{{{pods},{series.KIND}="{series.OUTPUT}"}}[2m]))/2',
    )


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError(f"not a DNS label: {name[:80]!r}")
    return name


class PrometheusDoor:
    """Reads deployments from Prometheus servers.

    It must be created, used and closed on the same event loop.
    """

    def __init__(self, *, timeout_s: float = 4.0) -> None:
        self._timeout_s = timeout_s
        self._transport = Transport(timeout_s)
        self._executor = ThreadPoolExecutor(max_workers=_AT_ONCE, thread_name_prefix="prometheus")
        self._gate = asyncio.Semaphore(_AT_ONCE)  # the deadline of a query starts when it has a thread

    async def close(self) -> None:
        self._executor.shutdown(wait=False, cancel_futures=True)
        await self._transport.close()

    async def read(self, endpoint: PrometheusEndpoint, namespace: str, name: str, now_s: float) -> dict[str, Sample]:
        """Return the last sample of each pod of a deployment, with epoch times.

        Raises Unreadable.
        """
        query = samples_query(namespace, name)
        found = await self._ask(endpoint, lambda client: from_matrix(client.custom_query(query), now_s, MAX_AGE_S))
        if found is None:
            raise Unreadable(_NONSENSE)
        return dict(found)

    async def matrix(self, endpoint: PrometheusEndpoint, query: str) -> list[Any]:
        """Return the series that a range vector selects. Raises Unreadable."""
        answer = await self._ask(endpoint, lambda client: client.custom_query(query))
        if not isinstance(answer, list):
            raise Unreadable(_NONSENSE)
        return answer

    async def history(self, endpoint: PrometheusEndpoint, namespace: str, name: str, now_s: float) -> list[Minute]:
        """Return the minutes of the last days in which requests arrived, oldest first.

        Raises Unreadable.
        """
        end = datetime.datetime.fromtimestamp(now_s - now_s % 60, datetime.UTC)
        start = end - datetime.timedelta(days=HISTORY_DAYS)
        columns = []
        for query in history_queries(namespace, name):
            columns.append(await self._ask(endpoint, _range(query, start, end)))
        requests_, prompt, output = columns
        return [
            Minute(t, requests_[t], prompt.get(t, 0.0), output.get(t, 0.0))
            for t in sorted(requests_)
            if requests_[t] > 0
        ]

    async def _ask(self, endpoint: PrometheusEndpoint, call: Callable[[PrometheusConnect], Any]) -> Any:
        """Return what `call` makes of the answer, on a thread. Raises Unreadable."""
        loop, lease = asyncio.get_running_loop(), Lease()

        def work() -> Any:
            with requests.Session() as session:
                session.trust_env = False
                client = PrometheusConnect(url=endpoint.url, session=session)
                # The library mounts an adapter of its own; this one takes its place.
                session.mount(endpoint.url, Adapter(self._transport, endpoint, loop, self._timeout_s + 1.0, lease))
                return call(client)

        async with self._gate:
            try:
                return await loop.run_in_executor(self._executor, work)
            except (requests.RequestException, PrometheusApiClientException, ValueError, KeyError, TypeError):
                raise Unreadable(_NONSENSE) from None
            except RecursionError:
                raise Unreadable(_NONSENSE) from None
            finally:
                self._transport.release(lease)


def _range(query: str, start: datetime.datetime, end: datetime.datetime) -> Callable[[PrometheusConnect], Any]:
    return lambda client: _series(client.custom_query_range(query, start, end, "60"))


def _series(answer: Any) -> dict[float, float]:
    """Return the values by time of a range answer with at most one series.

    Values that are not numbers are left out.
    """
    out: dict[float, float] = {}
    try:
        for at_s, text in answer[0]["values"] if answer else ():
            value = float(text)
            if value >= 0 and value != float("inf"):
                out[float(at_s)] = value
    except (KeyError, IndexError, TypeError, ValueError):
        return {}
    return out
