"""Tests of two operator processes and one Lease, against a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.integration.apiserver import LIMITED_USER, ApiServer
from tests.integration.operator_process import Cluster, Operator, eventually, operator

from disagg_operator.kube.resources import DEPLOYMENT, EVENT, LEASE
from disagg_operator.vocabulary import Obj

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

QUICK = {"DISAGG_LEASE_DURATION_S": "3", "DISAGG_LEASE_RENEW_DEADLINE_S": "2", "DISAGG_LEASE_RETRY_S": "0.3"}
NAMES = tuple(f"chat{i}" for i in range(6))


async def leading(running: Operator) -> bool:
    return await running.metric("disagg_operator_leading") == 1


async def stands_by(running: Operator) -> bool:
    return await running.metric("disagg_operator_leading") == 0


@contextlib.asynccontextmanager
async def two_operators(
    servers: tuple[ApiServer, ApiServer], cluster: Cluster, folder: Path, **settings: str
) -> AsyncIterator[tuple[Operator, Operator]]:
    """Run two operators; the first one leads, the second has filled its cache."""
    settings |= {"DISAGG_LEASE_NAMESPACE": cluster.namespace}
    one = operator(servers[0], folder, cluster.namespace, DISAGG_POD_NAME="operator-1", **settings)
    other = operator(servers[1], folder, cluster.namespace, DISAGG_POD_NAME="operator-2", **settings)
    async with one as first:
        await eventually("the first one leads", lambda: leading(first))
        async with other as second:
            await eventually("the second one stands by", lambda: stands_by(second))
            yield first, second


async def shows(cluster: Cluster, name: str, text: str) -> bool:
    """Return whether the edit with this text has reached the pods of a resource."""
    found = await cluster.kube.get(DEPLOYMENT, cluster.namespace, f"{name}-decode")
    return (
        found is not None
        and {"name": "EDIT", "value": text} in found["spec"]["template"]["spec"]["containers"][0]["env"]
    )


async def shown(cluster: Cluster, name: str, text: str) -> None:
    """Wait until an edit has reached the pods of a resource."""
    await eventually(f"{name} shows {text}", lambda: shows(cluster, name, text))


async def edit(cluster: Cluster, name: str, text: str) -> None:
    await cluster.apply_resource(name, engine={"env": [{"name": "EDIT", "value": text}]})


async def holder(cluster: Cluster) -> str:
    found = await cluster.kube.get(LEASE, cluster.namespace, "disagg-operator")
    return "" if found is None else str(found["spec"]["holderIdentity"])


async def events(cluster: Cluster, reason: str) -> list[Obj]:
    return [e for e in await cluster.kube.list(EVENT, cluster.namespace) if e["reason"] == reason]


async def test_a_killed_leader_is_replaced_when_its_lease_is_over_and_nothing_is_told_twice(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    async with two_operators((server, server), cluster, tmp_path) as (first, second):
        await cluster.apply_resource("bad", prefill={"replicas": 1, "podTemplate": {"spec": {"restartPolicy": "No"}}})
        await edit(cluster, "chat", "one")
        await eventually("the leader works", lambda: shows(cluster, "chat", "one"))
        await eventually("the refusal is told", lambda: events(cluster, "InvalidSpec"))

        async def watches() -> bool:
            return await second.metric('disagg_operator_watch_events_total{kind="DisaggDeployment"}') >= 2

        await eventually("the one that stands by watches", watches)
        first.process.kill()
        await edit(cluster, "chat", "two")
        assert await second.metric("disagg_operator_api_writes_total") == 0
        await eventually("the other one works", lambda: shows(cluster, "chat", "two"))
        assert (await holder(cluster)).startswith("operator-2_")

        async def reconciled() -> bool:
            return await second.metric("disagg_operator_reconcile_seconds_count") >= 2

        await eventually("both resources are reconciled", reconciled)
        assert len(await events(cluster, "InvalidSpec")) == 1


async def test_a_leader_that_stops_hands_over_at_once(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    async with two_operators((server, server), cluster, tmp_path) as (first, second):
        assert (await holder(cluster)).startswith("operator-1_")
        assert await first.stop() == 0
        # Its Lease would have been valid for another 13 s at least.
        await eventually("the other one leads", lambda: leading(second), 12.0)
        await edit(cluster, "chat", "one")
        await eventually("and works", lambda: shows(cluster, "chat", "one"))
        assert await second.stop() == 0
        assert await holder(cluster) == ""


def writes(server: ApiServer, user: str) -> list[str]:
    """Return the writes of a user but for those to Leases, as "verb path". A dry run is none."""
    return [
        f"{e['verb']} {e['requestURI']}"
        for e in server.audited()
        if e["user"]["username"] == user
        and e["verb"] not in ("get", "list", "watch")
        and e["objectRef"]["resource"] != "leases"
        and "dryRun=" not in e["requestURI"]
    ]


async def everything_is_allowed_to(user: str, cluster: Cluster) -> None:
    rbac = "rbac.authorization.k8s.io"
    binding = {
        "apiVersion": f"{rbac}/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": f"all-to-{user}"},
        "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"apiGroup": rbac, "kind": "User", "name": user}],
    }
    path = f"/apis/{rbac}/v1/clusterrolebindings/all-to-{user}"
    params = {"fieldManager": "test", "force": "true"}
    await cluster.raw("PATCH", path, binding, "application/apply-patch+yaml", params)


async def no_longer_allowed(user: str, cluster: Cluster) -> None:
    path = f"/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/all-to-{user}"
    await cluster.kube._call("DELETE", path)


async def test_a_leader_that_was_stopped_in_the_middle_of_its_work_writes_nothing_when_it_goes_on(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    await everything_is_allowed_to(LIMITED_USER, cluster)
    other_user = replace(server, kubeconfig=server.limited_kubeconfig)
    try:
        async with two_operators((other_user, server), cluster, tmp_path, **QUICK) as (first, second):
            for name in NAMES:
                await edit(cluster, name, "one")
            for name in NAMES:
                await shown(cluster, name, "one")
            await asyncio.gather(*(edit(cluster, name, "two") for name in NAMES))
            before = server.audit_log.stat().st_size
            while server.audit_log.stat().st_size < before + 20_000:  # some ten requests
                await asyncio.sleep(0.005)
            first.process.send_signal(signal.SIGSTOP)
            await eventually("the other one leads", lambda: leading(second))
            await asyncio.gather(*(edit(cluster, name, "three") for name in NAMES))
            for name in NAMES:
                await shown(cluster, name, "three")
            written = writes(server, LIMITED_USER)
            first.process.send_signal(signal.SIGCONT)

            async def resigned() -> bool:
                return not await leading(first)

            await eventually("the first one knows that it does not lead", resigned)
            assert await first.stop() == 0
            assert writes(server, LIMITED_USER) == written
    finally:
        await no_longer_allowed(LIMITED_USER, cluster)
