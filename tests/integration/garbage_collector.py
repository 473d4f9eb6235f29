"""The garbage collector of a real Kubernetes, for tests of who owns what."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from tests.integration.apiserver import ApiServer, program_path
from tests.ports import free_port

from disagg_operator.kube.client import HttpKube
from disagg_operator.kube.resources import CONFIG_MAP, uid_of

_TIMEOUT_S = 60.0


async def until(done: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `done()` is true."""
    async with asyncio.timeout(_TIMEOUT_S):
        while not await done():
            await asyncio.sleep(0.1)


@contextlib.asynccontextmanager
async def collecting(server: ApiServer, kube: HttpKube, namespace: str, folder: Path) -> AsyncIterator[None]:
    """Run the garbage collector, with the CRDs that exist now, until the block ends."""
    command = [
        program_path("kube-controller-manager"), f"--kubeconfig={server.kubeconfig}", "--leader-elect=false",
        "--controllers=garbage-collector-controller", "--bind-address=127.0.0.1", f"--secure-port={free_port()}",
    ]  # fmt: skip
    env = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    with open(folder / "controllers.log", "ab") as log:
        process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=subprocess.STDOUT, env=env)
    try:
        await until(lambda: _collects(kube, namespace))
        yield
    finally:
        process.terminate()
        process.wait(30)


async def _collects(kube: HttpKube, namespace: str) -> bool:
    """Return whether an object goes whose owner never existed."""
    owner = {
        "apiVersion": "v1",
        "kind": CONFIG_MAP.kind,
        "name": "nobody",
        "uid": "00000000-0000-0000-0000-000000000001",
    }
    meta = {"name": "probe-of-the-collector", "namespace": namespace, "ownerReferences": [owner]}
    found = await kube.get(CONFIG_MAP, namespace, meta["name"])  # type: ignore[arg-type]
    if found is None:
        made = await kube.create({"apiVersion": "v1", "kind": CONFIG_MAP.kind, "metadata": meta})
        async with asyncio.timeout(_TIMEOUT_S):
            while (found := await kube.get(CONFIG_MAP, namespace, str(meta["name"]))) and uid_of(found) == uid_of(made):
                await asyncio.sleep(0.1)
    return True
