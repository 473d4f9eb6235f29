"""A resource whose edits show in its pods, and an operator that has carried out the first one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.integration.cluster_state import rests
from tests.integration.faulty_api import FaultyApi
from tests.integration.operator_process import Cluster, Operator, eventually, operator

from disagg_operator.kube.resources import DEPLOYMENT
from disagg_operator.vocabulary import Obj

QUICK = {"DISAGG_RESYNC_INTERVAL_S": "0.25", "DISAGG_SCRAPE_INTERVAL_S": "1"}


async def shows(cluster: Cluster, text: str) -> bool:
    """Return whether the edit with this text has reached the pods."""
    found = await cluster.kube.get(DEPLOYMENT, cluster.namespace, "chat-decode")
    if found is None:
        raise KeyError("chat-decode")
    return {"name": "EDIT", "value": text} in found["spec"]["template"]["spec"]["containers"][0]["env"]


async def edit(cluster: Cluster, text: str, **spec: Any) -> Obj:
    return await cluster.apply_resource(engine={"env": [{"name": "EDIT", "value": text}]}, **spec)


async def shown(cluster: Cluster, text: str, wait_s: float = 30.0) -> None:
    await eventually(f"{text} has reached the pods", lambda: shows(cluster, text), wait_s)


@asynccontextmanager
async def resting_operator(api: FaultyApi, cluster: Cluster, folder: Path) -> AsyncIterator[Operator]:
    """Run an operator that has carried out the edit `one` and has nothing more to do."""
    async with operator(api.server, folder, cluster.namespace, **QUICK) as running:
        await edit(cluster, "one")
        await shown(cluster, "one")
        await rests(api)
        yield running
