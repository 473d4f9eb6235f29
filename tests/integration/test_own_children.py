"""Own objects of every kind that somebody deletes or edits are as they were before within seconds.

The next full list is an hour away.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, eventually, operator

from disagg_operator.kube import resources
from disagg_operator.kube.resources import Resource, name_of, uid_of
from disagg_operator.vocabulary import Obj
from disagg_wire.labels import LABEL_DEPLOYMENT

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

RESTING = {"DISAGG_RESYNC_INTERVAL_S": "3600"}
MERGE = "application/merge-patch+json"
SECONDS = 20.0
"""More than the time from one look at what is not watched to the next, on a busy machine."""
# What somebody writes to an object of each kind. The key can't be edited, as its Secret is
# immutable, and a revision is history.
EDITS: dict[Resource, Obj | None] = {
    resources.SERVICE: {"spec": {"selector": {"app": "other"}}},
    resources.SERVICE_ACCOUNT: {"automountServiceAccountToken": None, "metadata": {"labels": {LABEL_DEPLOYMENT: None}}},
    resources.ROLE: {"rules": []},
    resources.ROLE_BINDING: {"subjects": []},
    resources.POD_DISRUPTION_BUDGET: {"spec": {"selector": {"matchLabels": {"app": "other"}}}},
    resources.NETWORK_POLICY: {"spec": {"ingress": [], "policyTypes": ["Ingress"]}},
    resources.DEPLOYMENT: {"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 1}}}},
    resources.DISAGG_POOL: {"metadata": {"labels": {"app.kubernetes.io/managed-by": "other"}}},
    resources.NETWORK_ATTACHMENT: {"spec": {"config": "{}"}},
    resources.CONTROLLER_REVISION: None,
    resources.SECRET: None,
    resources.CONFIG_MAP: {"data": {"spec": "nothing"}},
}
NAMES = {resources.SECRET: "chat-cluster-key", resources.CONFIG_MAP: "chat-accepted-spec"}


@pytest.fixture
async def resting(server: ApiServer, cluster: Cluster, tmp_path: Path) -> AsyncIterator[Cluster]:
    attachment = {"type": "macvlan", "master": "eth1", "subnet": "10.9.0.0/24"}
    await cluster.attach_network("any")
    async with operator(server, tmp_path, cluster.namespace, **RESTING) as running:
        await cluster.apply_resource(kvTransfer={"network": {"attachment": attachment}})
        last = (-1.0, -1.0)

        async def rests() -> bool:
            nonlocal last
            before, last = last, (
                await running.metric("disagg_operator_api_writes_total"),
                await running.metric("disagg_operator_reconcile_seconds_count"),
            )  # fmt: skip
            return last == before and last[0] > 0 and (await cluster.condition("Accepted"))["status"] == "True"

        await eventually("the operator rests", rests)
        yield cluster


async def one_of(cluster: Cluster, kind: Resource) -> Obj:
    """Return an own object of a kind."""
    if (name := NAMES.get(kind)) is not None:
        found = await cluster.kube.get(kind, cluster.namespace, name)
        assert found is not None
        return found
    return (await cluster.kube.list(kind, cluster.namespace, f"{LABEL_DEPLOYMENT}=chat"))[0]


def content(obj: Obj) -> Any:
    """Return what of an object is the operator's."""
    meta = {k: v for k, v in obj["metadata"].items() if k in ("labels", "ownerReferences")}
    # A Secret gets a new key.
    parts = {k: v for k, v in obj.items() if k not in ("metadata", "status", "secrets")}
    return meta, {} if obj["kind"] == resources.SECRET.kind else parts


async def different(cluster: Cluster, before: dict[Resource, Obj], *, new: bool) -> list[str]:
    """Return the kinds of the objects that are not as before, or not `new`."""
    out = []
    for kind, obj in before.items():
        found = await cluster.kube.get(kind, cluster.namespace, name_of(obj))
        if found is None or (uid_of(found) != uid_of(obj)) is not new or (not new and content(found) != content(obj)):
            out.append(kind.kind)
    return out


def test_every_kind_of_own_object_is_in_the_table() -> None:
    assert {*EDITS} == {*resources.OWNED, resources.SECRET, resources.CONFIG_MAP}


async def test_what_somebody_deletes_is_made_again(resting: Cluster) -> None:
    # A pool takes what it owns with it; without a garbage collector it does not here.
    before = {kind: await one_of(resting, kind) for kind in EDITS}
    for obj in before.values():
        await resting.kube.delete(obj)

    async def back() -> bool:
        assert (missing := await different(resting, before, new=True)) == [], missing
        return True

    await eventually("all are there again", back, SECONDS)


async def test_what_somebody_edits_is_as_it_was_before(resting: Cluster) -> None:
    before = {kind: await one_of(resting, kind) for kind, edit in EDITS.items() if edit is not None}
    for kind, obj in before.items():
        path = kind.path(resting.namespace, name_of(obj))
        edited = await resting.raw("PATCH", path, EDITS[kind] or {}, MERGE)
        assert content(edited) != content(obj), kind.kind

    async def restored() -> bool:
        assert (edited := await different(resting, before, new=False)) == [], edited
        return True

    await eventually("all are as they were", restored, SECONDS)
