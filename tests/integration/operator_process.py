"""The operator as a process of its own against a real API server.

The module also has the helpers with which a test simulates the cluster around the operator.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
from aiohttp import web
from tests.integration.apiserver import REPO, ApiServer
from tests.ports import free_port

from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.credentials import load
from disagg_operator.kube.resources import (
    DEPLOYMENT,
    DISAGG_DEPLOYMENT,
    DISAGG_POOL,
    EVENT,
    NETWORK_ATTACHMENT,
    POD,
    SECRET,
)
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_REVISION

WAIT_S = 60.0
# A process that starts imports for seconds, and on a busy machine for a minute. No wait for what it
# does should contain that.
_START_S = 180.0
SPEC: dict[str, Any] = {
    "model": {"uri": "file:///models/stdlib-llama"},
    "prefill": {"replicas": 1},
    "decode": {"replicas": 2},
    "router": {"replicas": 1},
}


class Operator:
    """A process of `python -m disagg_operator` and its log."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, port: int) -> None:
        self.process = process
        self.log = log
        self.port = port

    async def metric(self, name: str) -> float:
        """Return the value of one of its metrics without labels."""
        async with httpx.AsyncClient(trust_env=False) as client:
            text = (await client.get(f"http://127.0.0.1:{self.port}/metrics")).text
        return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))

    async def stop(self) -> int:
        if self.process.returncode is None:
            self.process.send_signal(signal.SIGTERM)
        return await asyncio.wait_for(self.process.wait(), WAIT_S)


@contextlib.asynccontextmanager
async def operator(
    server: ApiServer, folder: Path, namespace: str, start_s: float = _START_S, /, **settings: str
) -> AsyncIterator[Operator]:
    """Run an operator that watches one namespace; at the end it is killed if it still runs.

    When the block begins, it listens, or has ended, unless `start_s` is 0.
    """
    port = free_port()
    log = folder / f"operator-{port}.log"
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()} | {
        "PYTHONPATH": f"{REPO}/operator:{REPO}/worker",
        "KUBECONFIG": str(server.kubeconfig),
        "TMPDIR": str(folder),  # an operator that is killed leaves its records behind
        "DISAGG_WORKER_IMAGE": "worker:test",
        "DISAGG_ROUTER_IMAGE": "router:test",
        "DISAGG_WATCH_NAMESPACE": namespace,
        "DISAGG_HEALTH_HOST": "127.0.0.1",
        "DISAGG_HEALTH_PORT": str(port),
        "DISAGG_SCRAPE_INTERVAL_S": "0.3",
        "DISAGG_SCRAPE_TIMEOUT_S": "1",
        **settings,
    }
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "disagg_operator", env=env, stdout=out, stderr=out, start_new_session=True
        )
    running = Operator(process, log, port)
    try:
        if start_s:
            await _begins(running, start_s)
        yield running
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _begins(running: Operator, start_s: float) -> None:
    """Wait until a process listens, or has ended."""
    try:
        async with asyncio.timeout(start_s):
            while running.process.returncode is None:
                with contextlib.suppress(OSError):
                    _, writer = await asyncio.open_connection("127.0.0.1", running.port)
                    writer.close()
                    return
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"the operator does not start:\n{running.log.read_text()[-3000:]}") from None


async def eventually(what: str, check: Callable[[], Awaitable[Any]], wait_s: float = WAIT_S) -> Any:
    """Return the first true answer of `check`.

    After `wait_s` seconds it fails with `what` and the last answer.
    """
    last: Any = None
    try:
        async with asyncio.timeout(wait_s):
            while True:
                try:
                    last = await check()
                except (AssertionError, KeyError, StopIteration, TypeError, httpx.TransportError) as error:
                    last = repr(error)
                else:
                    if last:
                        return last
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not within {wait_s:g} s: {what}; last: {last}") from None


class Cluster:
    """One namespace of the real API server, with helpers that act as user and kubelet."""

    def __init__(self, kube: HttpKube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace

    async def apply_resource(self, name: str = "chat", **spec: Any) -> Obj:
        """Apply a resource as `kubectl apply --server-side` would, with a field manager of its
        own.
        """
        obj = {
            "apiVersion": "disagg.dev/v1alpha1",
            "kind": "DisaggDeployment",
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {**SPEC, **spec},
        }
        return await self.raw(
            "PATCH",
            DISAGG_DEPLOYMENT.path(self.namespace, name),
            obj,
            "application/apply-patch+yaml",
            {"fieldManager": "kubectl", "force": "true", "fieldValidation": "Strict"},
        )

    async def raw(
        self, verb: str, path: str, body: Obj, content_type: str, params: dict[str, str] | None = None
    ) -> Obj:
        return await self.kube._call(verb, path, body=body, content_type=content_type, params=params)

    async def attach_network(self, name: str) -> None:
        """Install the API of Multus, and create a NetworkAttachmentDefinition."""
        apply, params = "application/apply-patch+yaml", {"fieldManager": "test", "force": "true"}
        plural, group = NETWORK_ATTACHMENT.plural, "k8s.cni.cncf.io"
        content = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
        schema = {"openAPIV3Schema": content}
        spec = {
            "group": group, "scope": "Namespaced",
            "names": {"plural": plural, "singular": plural[:-1], "kind": NETWORK_ATTACHMENT.kind},
            "versions": [{"name": "v1", "served": True, "storage": True, "schema": schema}],
        }  # fmt: skip
        crd = {"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition", "spec": spec}
        crd["metadata"] = {"name": f"{plural}.{group}"}
        crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
        await self.raw("PATCH", f"{crds}/{plural}.{group}", crd, apply, params)

        async def served() -> bool:
            return await self.kube.has_api(NETWORK_ATTACHMENT)

        await eventually("Multus's API is served", served)
        nad = {
            "apiVersion": NETWORK_ATTACHMENT.api_version, "kind": NETWORK_ATTACHMENT.kind,
            "metadata": {"name": name, "namespace": self.namespace}, "spec": {"config": "{}"},
        }  # fmt: skip
        await self.raw("PATCH", NETWORK_ATTACHMENT.path(self.namespace, name), nad, apply, params)

    async def scale(self, pool: str, replicas: int) -> None:
        """Send the request of `kubectl scale dp/POOL --replicas=N`."""
        path = DISAGG_POOL.path(self.namespace, pool) + "/scale"
        body = {"spec": {"replicas": replicas}}
        await self.raw("PATCH", path, body, "application/merge-patch+json", {"fieldManager": "kubectl-scale"})

    async def resource(self, name: str = "chat") -> Obj:
        found = await self.kube.get(DISAGG_DEPLOYMENT, self.namespace, name)
        if found is None:
            raise KeyError(name)
        return found

    async def condition(self, kind: str, name: str = "chat") -> Obj:
        return next(c for c in (await self.resource(name))["status"]["conditions"] if c["type"] == kind)

    async def accepted(self, name: str = "chat") -> bool:
        return bool((await self.condition("Accepted", name))["status"] == "True")

    async def templates(self) -> dict[str, Obj]:
        """Return the pod templates of the Deployments."""
        found = await self.kube.list(DEPLOYMENT, self.namespace)
        return {d["metadata"]["name"]: d["spec"]["template"] for d in found}

    async def event(self, reason: str, words: str = "", **selected: str) -> str:
        """Return the message of an Event once there is one; they come after the status."""

        async def found() -> str | None:
            events = await self.kube.list(EVENT, self.namespace, **selected)
            return next((e["message"] for e in events if e["reason"] == reason and words in e["message"]), None)

        message: str = await eventually(f"an Event {reason} {words}", found)
        return message

    async def replicas(self, role: str, name: str = "chat") -> tuple[int, int]:
        """Return the number of replicas of the pool, and that of its Deployment."""
        pool = await self.kube.get(DISAGG_POOL, self.namespace, f"{name}-{role}")
        deployment = await self.kube.get(DEPLOYMENT, self.namespace, f"{name}-{role}")
        if pool is None or deployment is None:
            raise KeyError(role)
        return pool["spec"]["replicas"], deployment["spec"]["replicas"]

    async def bearer_key(self, name: str = "chat") -> bytes:
        from disagg_operator.controller.children import cluster_key_of

        key = cluster_key_of(await self.kube.get(SECRET, self.namespace, f"{name}-cluster-key"))
        if key is None:
            raise KeyError(name)
        return key

    async def run_pod(self, component: str, index: int, address: str, port: int, name: str = "chat") -> str:
        """Create a ready pod at an address of the loopback network.

        It looks as kubelet and scheduler would leave it.
        """
        labels = {"disagg.dev/deployment": name, "app.kubernetes.io/component": component}
        if component != "router":
            labels["disagg.dev/pool"] = component
            labels |= await self.revision_labels(component, name)
        # This is the name that a ReplicaSet would give it.
        pod_name = f"{name}-{component}-0a1b2c3d4e-{index:05}"
        container = {"name": "main", "image": "x", "ports": [{"name": "http", "containerPort": port}]}
        meta = {"name": pod_name, "namespace": self.namespace, "labels": labels}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": {"containers": [container]}}
        await self.raw("POST", POD.path(self.namespace), pod, "application/json")
        conditions = [{"type": "Ready", "status": "True"}, {"type": "PodScheduled", "status": "True"}]
        status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
        path = POD.path(self.namespace, pod_name) + "/status"
        await self.raw("PATCH", path, {"status": status}, "application/merge-patch+json")
        return pod_name

    async def revision_labels(self, role: str, name: str = "chat") -> dict[str, str]:
        """Return the label of the present revision, which the pods of a pool carry."""
        found = await self.kube.get(DEPLOYMENT, self.namespace, f"{name}-{role}")
        labels = {} if found is None else found["spec"]["template"]["metadata"]["labels"]
        return {k: v for k, v in labels.items() if k == LABEL_REVISION}

    async def deployments_are_ready(self, name: str = "chat") -> None:
        """Write the status that the Deployment controller would write once all pods run."""
        for role in ("prefill", "decode", "router"):
            path = DEPLOYMENT.path(self.namespace, f"{name}-{role}")
            found = await self.kube.get(DEPLOYMENT, self.namespace, f"{name}-{role}")
            if found is None:
                raise KeyError(role)
            n = found["spec"]["replicas"]
            status = {
                "observedGeneration": found["metadata"]["generation"],
                "replicas": n,
                "readyReplicas": n,
                "updatedReplicas": n,
                "availableReplicas": n,
            }
            await self.raw("PATCH", path + "/status", {"status": status}, "application/merge-patch+json")


class Pods:
    """A real HTTP server on several loopback addresses that answers for the pods.

    `load` is the number of requests by address.
    """

    def __init__(self) -> None:
        self.load: dict[str, float | str] = {}
        self.waiting = {"prefill": 0.0, "decode": 0.0}
        self.pairs = {"expected": 1, "healthy": 1}
        self.workers = [{"pod": "p", "role": "prefill", "state": "ready", "transport": "tcp", "interface": "eth0"}]
        self.silent: set[str] = set()
        self.counters: dict[str, Callable[[], dict[str, float]]] = {}
        self.scrapes: Counter[str] = Counter()
        self.bearers: set[str] = set()
        self.unfinished: dict[str, int] = {}  # the requests of workers that can be told to drain, by address
        self.leases: dict[str, float] = {}
        self._runner: web.AppRunner | None = None

    async def start(self, addresses: list[str], port: int) -> None:
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics), web.get("/internal/v1/state", self._state)])
        app.add_routes([web.post("/internal/v1/drain", self._drain)])
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        for address in addresses:
            await web.TCPSite(self._runner, address, port).start()

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        address = str(request.transport.get_extra_info("sockname")[0]) if request.transport else ""
        self.scrapes[address] += 1
        if address in self.silent:
            return web.Response(status=500)
        if address == "127.0.0.10":
            lines = [f'disagg_router_waiting_requests{{pool="{p}"}} {n}' for p, n in self.waiting.items()]
        else:
            lines = ["disagg_worker_waiting_requests 0", f"disagg_worker_running_requests {self.load.get(address, 0)}"]
        more = self.counters.get(address, dict)()
        return web.Response(text="\n".join([*lines, *(f"{k} {v}" for k, v in more.items())]) + "\n")

    async def _drain(self, request: web.Request) -> web.Response:
        address = str(request.transport.get_extra_info("sockname")[0]) if request.transport else ""
        if address not in self.unfinished:
            return web.Response(status=404)
        self.bearers.add(request.headers.get("Authorization", ""))
        self.leases[address] = (await request.json())["lease_s"]
        return web.json_response({}, status=202 if self.unfinished[address] else 200)

    async def _state(self, request: web.Request) -> web.Response:
        self.bearers.add(request.headers.get("Authorization", ""))
        return web.json_response({"workers": self.workers, "pairs": self.pairs, "waiting": self.waiting})


def client(server: ApiServer) -> HttpKube:
    """Return a client for the test itself.

    Its requests differ from those of the operator by the process that sends them, not by a name.
    """
    return HttpKube(load({"KUBECONFIG": str(server.kubeconfig)}), attempts=1)
