"""Canaries by the operator process on a real API server; a made-up router reports the requests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.kubelets import Kubelets
from tests.integration.operator_process import Cluster, eventually, operator
from tests.integration.test_rollouts import command, complete, numbers
from tests.ports import free_port

from disagg_operator.kube.resources import (
    CONTROLLER_REVISION,
    DEPLOYMENT,
    SERVICE,
    annotations_of,
    labels_of,
    name_of,
)
from disagg_operator.rollout import looking
from disagg_operator.rollout.canary_record import CANARY_ANNOTATION, read_record
from disagg_wire.canary import CanaryWord, read_word
from disagg_wire.labels import LABEL_CANARY

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]
TWO: dict[str, Any] = {"prefill": {"replicas": 2}, "decode": {"replicas": 2}}
CANARY: dict[str, Any] = {"rollout": {"canary": {"minRequests": 50}}}
OTHER: dict[str, Any] = {"model": {"uri": "file:///models/other", "name": "stdlib-llama"}}


async def words(cluster: Cluster) -> dict[str, CanaryWord]:
    """Return what the Services of the pools say, whose labels the EndpointSlices carry."""
    found = {role: await cluster.kube.get(SERVICE, cluster.namespace, f"chat-{role}") for role in TWO}
    texts = {role: labels_of(service or {}).get(LABEL_CANARY, "") for role, service in found.items()}
    return {role: word for role, text in texts.items() if (word := read_word(text)) is not None}


async def replicas(cluster: Cluster) -> dict[str, list[int]]:
    """Return the replicas of the old and of all new workers of each pool."""
    found = looking.workloads(await cluster.kube.list(DEPLOYMENT, cluster.namespace)).items()
    out = {role: [0, 0] for role in TWO}
    for (role, _), deployment in found:
        out[role][deployment["metadata"]["name"] != f"chat-{role}"] += deployment["spec"]["replicas"]
    return out


async def told(cluster: Cluster) -> dict[str, Any]:
    return await cluster.condition("Progressing")


async def reason(cluster: Cluster) -> str:
    return str((await told(cluster))["reason"])


@asynccontextmanager
async def tried(server: ApiServer, cluster: Cluster, folder: Path, *, kill: bool = False) -> AsyncIterator[Kubelets]:
    """Run a cluster until a new revision is tried, with an operator that is gone in the block."""
    kubelets = Kubelets(cluster)
    async with kubelets.running(free_port()):
        async with operator(server, folder, cluster.namespace) as first:
            await cluster.apply_resource(**TWO, **CANARY)
            await eventually("the first revision serves", lambda: complete(cluster))
            kubelets.least = 99
            await cluster.apply_resource(**TWO, **CANARY, **OTHER)

            async def begun() -> bool:
                return await reason(cluster) == "Canary"

            await eventually("the canary", begun)
            if kill:
                first.process.kill()
            else:
                await first.stop()
        assert await replicas(cluster) == {"prefill": [2, 1], "decode": [2, 1]}
        found = await words(cluster)
        assert {word.percent for word in found.values()} == {10}
        assert set(found) == {"prefill", "decode"}
        yield kubelets
        assert kubelets.least >= 1


@pytest.mark.long
@pytest.mark.parametrize("kill", [False, True])
async def test_a_canary_is_promoted_by_the_operator_that_follows(
    server: ApiServer, cluster: Cluster, tmp_path: Path, kill: bool
) -> None:
    async with tried(server, cluster, tmp_path, kill=kill) as kubelets:
        kubelets.serve(60, 60, 500, 499)
        async with operator(server, tmp_path, cluster.namespace):
            # The Lease of an operator that was killed must run out first.
            await eventually("the rollout is complete", lambda: complete(cluster), 90.0)
        assert await replicas(cluster) == {"prefill": [0, 2], "decode": [0, 2]}
        assert await words(cluster) == {}


async def test_a_canary_that_is_worse_goes_back_and_stays_back(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    async def failed() -> bool:
        return await reason(cluster) == "CanaryFailed" and await replicas(cluster) == {role: [2, 0] for role in TWO}

    async with tried(server, cluster, tmp_path) as kubelets:
        kubelets.serve(60, 40, 500, 499)
        async with operator(server, tmp_path, cluster.namespace) as second:
            await eventually("the canary has failed", failed)
            await second.stop()
        kubelets.serve(60, 60, 500, 499)
        async with operator(server, tmp_path, cluster.namespace) as third:

            async def quiet() -> bool:
                return await third.metric("disagg_operator_reconcile_seconds_count") >= 1

            await eventually("an operator that leads", quiet)
            condition = await cluster.condition("Progressing")
            assert condition["status"] == "False"
            assert "60 of 50, attainment 66.6 % new, 99.8 % old" in condition["message"]
            assert await failed()


async def test_a_canary_with_too_few_requests_waits_for_the_command_to_go_on(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    async def waits() -> bool:
        # A trial that began at another time is another one, which the router must hear of first.
        return await reason(cluster) == "CanaryInconclusive" and "5 of 50" in (await told(cluster))["message"]

    async with tried(server, cluster, tmp_path) as kubelets:
        kubelets.serve(5, 5, 500, 499)
        for revision in await cluster.kube.list(CONTROLLER_REVISION, cluster.namespace):
            record = read_record(annotations_of(revision).get(CANARY_ANNOTATION))
            if record is not None and not record.verdict:  # it began long ago
                text = replace(record, since="2026-01-01T00:00:00Z").text()
                patch = {"metadata": {"annotations": {CANARY_ANNOTATION: text}}}
                await cluster.kube.merge(CONTROLLER_REVISION, cluster.namespace, name_of(revision), patch)
        async with operator(server, tmp_path, cluster.namespace):
            await eventually("the canary is inconclusive", waits)
            assert (await told(cluster))["status"] == "Unknown"
            assert await replicas(cluster) == {"prefill": [2, 1], "decode": [2, 1]}
            assert "promoted" in await command(server, cluster, "disagg rollout resume chat")
            assert "RolloutComplete" in await command(server, cluster, "disagg rollout status chat")
        assert await replicas(cluster) == {"prefill": [0, 2], "decode": [0, 2]}
        assert await numbers(cluster) == [1, 2]
