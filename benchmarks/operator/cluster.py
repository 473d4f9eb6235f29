"""An API server with the CRDs, and what a benchmark sees of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import yaml
from tests.integration.apiserver import REPO, TOKEN, ApiServer, api_server
from tests.integration.operator_process import client, eventually

from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_DEPLOYMENT, Resource, name_of
from disagg_operator.vocabulary import FIELD_MANAGER, Obj

_CRDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
_APPLY = "application/apply-patch+yaml"
_METADATA_ONLY = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1"
_BY = {"fieldManager": "user", "force": "true"}


class Cluster:
    """A real API server without controllers, and a client of it."""

    def __init__(self, server: ApiServer, folder: Path) -> None:
        self.server = server
        self.kube: HttpKube = client(server)
        self._context = ssl.create_default_context(cafile=str(folder / "tls.crt"))

    async def send(self, path: str, obj: Obj) -> Obj:
        """Apply an object as a user."""
        return await self.kube._call("PATCH", path, body=obj, content_type=_APPLY, params=_BY)

    async def install(self) -> None:
        """Install the CRDs, and wait until they are served."""
        for file in sorted((REPO / "crds").glob("*.yaml")):
            crd: Obj = yaml.safe_load(file.read_text())
            await self.send(f"{_CRDS}/{name_of(crd)}", crd)
        await eventually("the CRDs are served", lambda: self.kube.has_api(DISAGG_DEPLOYMENT))

    async def namespace(self, name: str) -> None:
        await self.send(
            f"/api/v1/namespaces/{name}", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
        )

    async def watch(
        self, resource: Resource, namespace: str, see: Callable[[Obj], bool], *, slim: bool = False, version: str = "0"
    ) -> None:
        """Pass the objects of a namespace to `see`, with each change, until it returns True.

        If they are `slim`, they have only their metadata.
        """
        headers = {"Authorization": f"Bearer {TOKEN}", "Accept": _METADATA_ONLY if slim else "application/json"}
        async with httpx.AsyncClient(verify=self._context, timeout=None, trust_env=False) as http:
            url = f"{self.server.url}{resource.path(namespace)}"
            params = {"watch": "true", "resourceVersion": version, "timeoutSeconds": "3600"}
            async with http.stream("GET", url, params=params, headers=headers) as stream:
                async for line in stream.aiter_lines():
                    if see(json.loads(line)["object"]):
                        return

    async def until_told(self, namespace: str, names: set[str]) -> None:
        """Wait until the operator has written the status of each of these resources."""
        left = set(names)

        def see(obj: Obj) -> bool:
            entries = obj["metadata"].get("managedFields") or []
            if any(entry.get("subresource") == "status" for entry in entries):
                left.discard(name_of(obj))
            return not left

        await self.watch(DISAGG_DEPLOYMENT, namespace, see, slim=True)

    def calls(self, namespace: str) -> Counter[str]:
        """Return the operator's calls about a namespace so far: reads, dry runs, writes."""
        out: Counter[str] = Counter()
        with self.server.audit_log.open() as lines:
            for line in lines:
                if f"/namespaces/{namespace}/" not in line:
                    continue
                entry = json.loads(line)
                if entry.get("userAgent") != FIELD_MANAGER or "/disaggscalers" in entry["requestURI"]:
                    continue
                dry, read = "dryRun=" in entry["requestURI"], entry["verb"] in ("get", "list")
                out["reads" if read else "dry runs" if dry else "writes"] += 1
        return out


def cpu_s(process: int) -> float:
    """Return the seconds of CPU time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_mib(process: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def servers() -> list[int]:
    """Return the API server and the etcd that this process has started."""
    found = []
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            name, _, rest = Path(f"/proc/{process}/stat").read_text().partition(" (")[2].rpartition(")")
            if name in ("kube-apiserver", "etcd") and rest.split()[1] == str(os.getpid()):
                found.append(int(process))
    return found


class Replicas:
    """The replicas of the Deployments of a namespace as they change."""

    def __init__(self) -> None:
        self._waiting: dict[tuple[str, int], asyncio.Future[float]] = {}

    def see(self, obj: Obj) -> bool:
        waiting = self._waiting.pop((name_of(obj), int(obj["spec"]["replicas"])), None)
        if waiting is not None:
            waiting.set_result(time.monotonic())
        return False

    async def reached(self, name: str, replicas: int, within_s: float) -> float:
        """Return when a Deployment has got so many replicas."""
        future: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        self._waiting[name, replicas] = future
        async with asyncio.timeout(within_s):
            return await future


@contextlib.asynccontextmanager
async def replicas(cluster: Cluster, namespace: str) -> AsyncIterator[Replicas]:
    """Watch the Deployments of a namespace."""
    seen = Replicas()
    task = asyncio.create_task(cluster.watch(DEPLOYMENT, namespace, seen.see))
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@contextlib.asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[Cluster]:
    """Run an API server in a folder until the block ends."""
    with api_server(folder) as server:
        found = Cluster(server, folder)
        await found.install()
        try:
            yield found
        finally:
            await found.kube.close()
