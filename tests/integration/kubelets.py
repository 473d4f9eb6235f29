"""The part of a cluster that makes pods of Deployments, and a router that reports their pairs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from aiohttp import web
from tests.integration.operator_process import Cluster, Pods

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.pods import is_ready, pool_of
from disagg_operator.kube.resources import CONTROLLER_REVISION, DEPLOYMENT, POD, SERVICE, labels_of, name_of
from disagg_operator.rollout import looking, revisions
from disagg_operator.vocabulary import Obj
from disagg_wire.canary import name_of as name_of_canary
from disagg_wire.canary import read_word
from disagg_wire.labels import LABEL_CANARY, LABEL_DEPLOYMENT, LABEL_POOL, LABEL_REVISION

_EVERY_S = 0.1


class Kubelets(Pods):
    """Makes the pods that Deployments of workers ask for, ready at once, and reports their pairs.

    `least` is the smallest number of pairs of one revision since it was last set.
    """

    def __init__(self, cluster: Cluster) -> None:
        super().__init__()
        self._cluster = cluster
        self._made = 0
        self._workers: list[Obj] = []
        self._fitting: set[tuple[str, str]] = set()
        self._tried = ""
        self._counted: list[int] = []
        self.least = 0

    @contextlib.asynccontextmanager
    async def running(self, port: int) -> AsyncIterator[None]:
        """Serve the router's state and make pods until the block ends."""
        await self.start(["127.0.0.10"], port)
        await self._cluster.run_pod("router", 0, "127.0.0.10", port)
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            await self.stop()

    def serve(self, *counts: int) -> None:
        """Let so many requests begin and end in this minute: of the new revision that is tried,
        those of them that met the objectives, and both of the old one.
        """
        self._counted = [int(time.time() // 60), *counts]

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(KubeError):  # what was read has changed meanwhile: look again
                await self._once()
            await asyncio.sleep(_EVERY_S)

    async def _once(self) -> None:
        cluster, kube = self._cluster, self._cluster.kube
        labels = f"{LABEL_DEPLOYMENT}=chat"
        deployments = await kube.list(DEPLOYMENT, cluster.namespace, labels)
        workloads = looking.workloads(deployments)
        pods = [pod for pod in await kube.list(POD, cluster.namespace, labels) if pool_of(pod)]
        for pod in pods:
            if (pool_of(pod), labels_of(pod).get(LABEL_REVISION)) not in workloads:
                await self._delete(pod)
        for key, deployment in workloads.items():
            here = looking.pods_of(pods, key)
            for pod in here[deployment["spec"]["replicas"] :]:
                await self._delete(pod)
            for _ in range(deployment["spec"]["replicas"] - len(here)):
                await self._create(deployment)
        for deployment in deployments:
            await self._status(deployment)
        await self._look()

    async def _look(self) -> None:
        known = revisions.known_revisions(
            await self._cluster.kube.list(CONTROLLER_REVISION, self._cluster.namespace, f"{LABEL_DEPLOYMENT}=chat")
        )
        self._fitting |= {revision.pair for revision in known}
        labels = f"{LABEL_DEPLOYMENT}=chat,{LABEL_POOL}"
        services = await self._cluster.kube.list(SERVICE, self._cluster.namespace, labels)
        texts = {pool_of(service): labels_of(service).get(LABEL_CANARY, "") for service in services}
        self._tried = name_of_canary({pool: word for pool, text in texts.items() if (word := read_word(text))})
        self._workers = list(filter(is_ready, await self._cluster.kube.list(POD, self._cluster.namespace, labels)))
        self.least = min(self.least, len(self._pairs()))

    async def _create(self, deployment: Obj) -> None:
        self._made += 1
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        name = f"{name_of(deployment)}-{self._made:010x}-{self._made:05}"
        meta = {"name": name, "namespace": self._cluster.namespace, "labels": labels}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": meta,
            "spec": {"containers": [{"name": "main", "image": "x"}]},
        }
        path = POD.path(self._cluster.namespace)
        await self._cluster.raw("POST", path, pod, "application/json")
        status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
        await self._cluster.raw("PATCH", f"{path}/{name}/status", {"status": status}, "application/merge-patch+json")

    async def _delete(self, pod: Obj) -> None:
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
        await self._cluster.raw("DELETE", POD.path(self._cluster.namespace, name_of(pod)), options, "application/json")

    async def _status(self, deployment: Obj) -> None:
        count = deployment["spec"]["replicas"]
        status = {
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": count,
            "readyReplicas": count,
            "updatedReplicas": count,
        }
        seen = deployment.get("status") or {}
        if {k: seen.get(k, 0) for k in status} != status:
            path = DEPLOYMENT.path(self._cluster.namespace, name_of(deployment)) + "/status"
            await self._cluster.raw("PATCH", path, {"status": status}, "application/merge-patch+json")

    def _pairs(self) -> list[tuple[str, str]]:
        """Return the pairs of workers that were rendered from one spec."""
        sides: dict[str, list[str]] = {"prefill": [], "decode": []}
        for pod in self._workers:
            sides[pool_of(pod)].append(name_of(pod))
        revision = {name_of(pod): labels_of(pod)[LABEL_REVISION] for pod in self._workers}
        return [
            (p, d) for p in sides["prefill"] for d in sides["decode"] if (revision[p], revision[d]) in self._fitting
        ]

    async def _state(self, request: web.Request) -> web.Response:
        pairs = self._pairs()
        workers = [
            {"pod": name_of(pod), "role": pool_of(pod), "state": "ready", "transport": "tcp", "interface": "eth0"}
            for pod in self._workers
        ]
        links = [{"prefill": p, "decode": d, "transport": "tcp", "evidence": "Proved"} for p, d in pairs]
        counts = {"expected": len(pairs), "healthy": len(pairs)}
        rows = [self._counted] if self._counted else []
        told = {"revision": self._tried, "through": self._counted[0] if rows else 0, "minutes": rows}
        state = {"workers": workers, "pairs": counts, "links": links, "waiting": self.waiting}
        return web.json_response(state | {"incarnation": "a-router", "canary": told if self._tried else None})
