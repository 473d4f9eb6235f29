"""Scaling to zero by the operator process on a real API server, with a real router."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from tests.fakes.token_worker import KEY, TokenWorker, expected_text
from tests.integration.apiserver import ApiServer
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, eventually, operator
from tests.ports import free_port
from tests.router.stack import tokens_of

from disagg_operator.kube.resources import labels_of, name_of
from disagg_operator.vocabulary import Obj
from disagg_router.main import server_of
from disagg_router.router import Router
from disagg_router.settings import Settings
from disagg_wire.labels import LABEL_POOL

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]
ADDRESS = "127.0.0.11"
MODEL = "stdlib-llama"


class ServingKubelets(Kubelets):
    """Kubelets whose workers speak the protocol, behind a real router."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        super().__init__(cluster)
        self._folder = folder
        self._serving: dict[str, TokenWorker] = {}
        self._members = folder / "members.json"

    @contextlib.asynccontextmanager
    async def running(self, port: int) -> AsyncIterator[None]:
        key = self._folder / "key"
        key.write_bytes(KEY)  # that of the workers
        self._publish()
        values = {"model_name": MODEL, "cluster_key_file": str(key), "membership": f"file://{self._members}",
                  "poll_interval_s": 0.05, "hold_max_wait_s": 60}  # fmt: skip
        router = Router(Settings.model_validate(values))
        found = await eventually("the cluster key", self._cluster.bearer_key)
        key.write_bytes(found)  # that of the operator
        server = server_of(router)
        sock = socket.create_server((ADDRESS, port))
        tasks = [asyncio.create_task(t) for t in (router.run(), server.serve(sockets=[sock]), self._run())]
        await self._cluster.run_pod("router", 0, ADDRESS, port)
        try:
            yield
        finally:
            server.should_exit = True
            router.queue.hold.demand.end()
            await tasks[1]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(w.stop() for w in self._serving.values()))
            await router.client.close()

    def _publish(self) -> None:
        listed = [{"name": w.name, "url": w.url} for w in self._serving.values()]
        fresh = self._members.with_suffix(".new")
        fresh.write_text(json.dumps({"workers": listed}))
        fresh.replace(self._members)

    async def _look(self) -> None:
        """The pairs are known to the router."""

    async def _create(self, deployment: Obj) -> None:
        await super()._create(deployment)
        name = f"{name_of(deployment)}-{self._made:010x}-{self._made:05}"
        worker = TokenWorker(name, labels_of(deployment)[LABEL_POOL])
        worker.model = MODEL
        await worker.start()
        self._serving[name] = worker
        self._publish()

    async def _delete(self, pod: Obj) -> None:
        with contextlib.suppress(KeyError):
            worker = self._serving.pop(name_of(pod))
            self._publish()
            await worker.stop()
        await super()._delete(pod)


async def sizes(cluster: Cluster) -> list[tuple[int, int]]:
    return [await cluster.replicas(role) for role in ("prefill", "decode")]


async def ready(cluster: Cluster, reason: str) -> bool:
    condition = await cluster.condition("Ready")
    return (condition["status"], condition["reason"]) == ("True", reason)


async def test_an_idle_deployment_goes_to_zero_and_wakes_for_a_request(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    kubelets, port = ServingKubelets(cluster, tmp_path), free_port()
    async with contextlib.AsyncExitStack() as stack:
        async with operator(server, tmp_path, cluster.namespace) as first:
            await cluster.apply_resource(
                decode={"autoscaling": {"minReplicas": 2, "maxReplicas": 4}},
                scaling={"scaleToZero": {"idleSeconds": 1, "holdSeconds": 60}},
            )
            await stack.enter_async_context(kubelets.running(port))
            await eventually("both pools are at zero", lambda: ready(cluster, "ScaledToZero"))
            assert await sizes(cluster) == [(0, 0), (0, 0)]
            assert await first.stop() == 0
        http = await stack.enter_async_context(
            httpx.AsyncClient(base_url=f"http://{ADDRESS}:{port}", trust_env=False, timeout=60)
        )
        # This operator looks at the pods once: what it learns later, a router has told it.
        async with operator(server, tmp_path, cluster.namespace, DISAGG_SCRAPE_INTERVAL_S="60") as second:
            await eventually("it has looked", lambda: second.metric("disagg_operator_sweep_seconds_count"))
            assert [m["id"] for m in (await http.get("/v1/models")).json()["data"]] == [MODEL]
            body = {"model": MODEL, "prompt": "hello", "max_tokens": 8, "seed": 5}
            answers = await asyncio.gather(*(http.post("/v1/completions", json=body) for _ in range(3)))
            assert {a.json()["choices"][0]["text"] for a in answers} == {expected_text(5, tokens_of("hello"), 8)}
            assert [size[0] for size in await sizes(cluster)] == [1, 2]
            assert "a request waits for workers" in second.log.read_text()
            assert await second.stop() == 0


async def test_scale_takes_no_pool_to_zero_alone(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    async with operator(server, tmp_path, cluster.namespace):
        await cluster.apply_resource()

        async def has(expected: list[tuple[int, int]]) -> bool:
            found = await sizes(cluster)
            assert found == expected
            return True

        await eventually("both pools are there", lambda: has([(1, 1), (2, 2)]))
        await cluster.scale("chat-decode", 0)
        await eventually("decode keeps one", lambda: has([(1, 1), (0, 1)]))
        await eventually("and status says so", lambda: _warned(cluster))
        await cluster.scale("chat-prefill", 0)
        await eventually("both go", lambda: has([(0, 0), (0, 0)]))
        await cluster.scale("chat-prefill", 3)
        await eventually("both come", lambda: has([(3, 3), (0, 1)]))


async def _warned(cluster: Cluster) -> bool:
    conditions = (await cluster.resource())["status"]["conditions"]
    return any(c["reason"] == "OnePoolAtZero" and "spec.decode.replicas" in c["message"] for c in conditions)
