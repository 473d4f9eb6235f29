"""A real Prometheus whose answers are falsified on their way to the operator process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web
from tests.connections import serving
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, Operator, Pods, eventually, operator
from tests.integration.test_prometheus import grown_to, prometheus, run_pods, scaling_is
from tests.ports import free_port

from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

HOUR_S = 3600.0
Series = list[Obj]


def _values(change: Callable[[float, str], tuple[float, str]]) -> Callable[[Series], Series]:
    return lambda series: [{**s, "values": [list(change(at_s, v)) for at_s, v in s["values"]]} for s in series]


LIES: dict[str, Callable[[Series], Series]] = {
    "nothing": lambda series: [],
    "NaN": _values(lambda at_s, value: (at_s, "NaN")),
    "+Inf": _values(lambda at_s, value: (at_s, "+Inf")),
    "old samples": _values(lambda at_s, value: (at_s - HOUR_S, value)),
    "less than nothing": _values(lambda at_s, value: (at_s, "-1")),
}


class Falsified:
    """A server between the operator and a Prometheus."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.lie: Callable[[Series], Series] = lambda series: series
        self.told = 0

    async def answer(self, request: web.Request) -> web.Response:
        async with httpx.AsyncClient(trust_env=False) as http:
            asked = dict(await request.post()) | dict(request.query)
            found = (await http.post(f"{self._url}{request.path}", data=asked)).json()
        if isinstance(found.get("data"), dict):
            found["data"]["result"] = self.lie(found["data"]["result"])
        self.told += 1
        return web.json_response(found)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[str]:
        async with serving(web.route("*", "/{path:.*}", self.answer)) as port:
            yield f"http://127.0.0.1:{port}"


async def some_looks(running: Operator, server: Falsified) -> None:
    """Wait until the operator has had several answers more, and has decided by them."""
    told, looks = server.told, await running.metric("disagg_operator_sweep_seconds_count")

    async def seen() -> bool:
        return server.told >= told + 4 and await running.metric("disagg_operator_sweep_seconds_count") >= looks + 6

    await eventually("some looks", seen)


async def test_f21_no_nonsense_of_a_prometheus_scales_a_pool(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    pods, port = Pods(), free_port()
    pods.load["127.0.0.36"] = 11
    decode: dict[str, Any] = {
        "autoscaling": {
            "maxReplicas": 3,
            "metrics": [{"type": "QueueDepth", "target": {"averageValue": 4}}],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 1}},
        }
    }
    await pods.start(["127.0.0.10", "127.0.0.36"], port)
    try:
        async with operator(server, tmp_path, cluster.namespace) as running:
            targets = await run_pods(cluster, port, router="127.0.0.10", decode="127.0.0.36")
            async with prometheus(tmp_path, targets) as url:
                between = Falsified(url)
                async with between.running() as shown:
                    await cluster.apply_resource(decode=decode, observability={"prometheus": {"url": shown}})
                    await grown_to(cluster, 3)
                    for name, lie in LIES.items():
                        between.lie = lie
                        await some_looks(running, between)
                        pods.load["127.0.0.36"] = 0  # which nobody hears of
                        await scaling_is(cluster, "MetricsUnavailable")
                        await some_looks(running, between)
                        assert await cluster.replicas("decode") == (3, 3), name
                    between.lie = lambda series: series
                    await grown_to(cluster, 1)  # the truth scales it down
    finally:
        await pods.stop()
