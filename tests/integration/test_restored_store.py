"""The data of etcd are restored from a backup, under an operator that runs on.

The backup is the folder of a real etcd that was stopped. Its revisions go back, as they do with
`etcdutl snapshot restore` without `--bump-revision`.
"""

from __future__ import annotations

import asyncio
import signal
from functools import partial
from pathlib import Path

import pytest
from tests.integration.apiserver import REPO, Machine, Store, restorable_api_server
from tests.integration.cluster_state import collect_garbage, delete_resource, objects, uids
from tests.integration.operator_process import Cluster, Operator, client, eventually, operator
from tests.integration.test_crd_faults import install, works
from tests.integration.test_leader_election import edit, leading, shown, shows

from disagg_operator.kube.resources import DISAGG_DEPLOYMENT, labels_of
from disagg_wire.labels import LABEL_DEPLOYMENT

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.long]

# No full list comes by itself.
SETTINGS = {"DISAGG_RESYNC_INTERVAL_S": "3600", "DISAGG_SCRAPE_INTERVAL_S": "1"}
# The operator lists everything again 30 and 90 s after it has noticed.
NOTICED_S = 150.0


async def put_aside(machine: Machine, store: Store) -> None:
    """Stop API server and etcd, and start them again with their data copied."""
    await asyncio.to_thread(machine.stop)
    await asyncio.to_thread(store.stop)
    store.back_up()
    store.start()
    await asyncio.to_thread(machine.start)


async def bring_back(machine: Machine, store: Store) -> None:
    """Stop API server and etcd, and start them again with the data that were copied."""
    await asyncio.to_thread(machine.stop)
    await asyncio.to_thread(store.stop)
    store.restore()
    store.start()
    await asyncio.to_thread(machine.start)


async def resting(running: Operator) -> None:
    """Wait until three seconds pass without a write of the operator or a run of its reconciler."""

    async def quiet() -> bool:
        names = ("disagg_operator_api_writes_total", "disagg_operator_reconcile_seconds_count")
        before = [await running.metric(name) for name in names]
        await asyncio.sleep(3.0)
        return [await running.metric(name) for name in names] == before

    await eventually("the operator rests", quiet, NOTICED_S)


async def names_of(cluster: Cluster) -> set[str]:
    """Return the resources that have own objects."""
    return {labels_of(obj).get(LABEL_DEPLOYMENT, "") for obj in await objects(cluster)} - {""}


async def change_what_the_backup_lacks(cluster: Cluster) -> None:
    """Carry out what was declared before the backup, and then change and delete it."""
    for name in ("chat", "old"):
        await shown(cluster, name, "two")
    await edit(cluster, "chat", "three")
    await edit(cluster, "late", "one")
    await shown(cluster, "chat", "three")
    await shown(cluster, "late", "one")
    await delete_resource(cluster, "old")
    await collect_garbage(cluster)


async def test_after_a_restore_of_etcd_the_operator_carries_out_what_the_backup_declares(tmp_path: Path) -> None:
    with restorable_api_server(tmp_path) as (server, machine, store):
        cluster = Cluster(client(server), "default")
        lease = {"DISAGG_LEASE_NAMESPACE": "default"}
        await install(cluster, REPO / "crds")
        await works("the kinds are served", lambda: cluster.apply_resource("chat"))
        async with operator(server, tmp_path, "default", **SETTINGS, **lease) as running:
            await eventually("it leads", lambda: leading(running))
            for name in ("chat", "old"):
                await edit(cluster, name, "one")
                await shown(cluster, name, "one")
            await resting(running)
            before = await uids(cluster)
            # The backup has edits that nobody has carried out.
            running.process.send_signal(signal.SIGSTOP)
            for name in ("chat", "old"):
                await edit(cluster, name, "two")
            await put_aside(machine, store)
            running.process.send_signal(signal.SIGCONT)
            await change_what_the_backup_lacks(cluster)
            await resting(running)
            assert await names_of(cluster) == {"chat", "late"}
            await bring_back(machine, store)
            assert await cluster.kube.get(DISAGG_DEPLOYMENT, "default", "late") is None
            for name in ("chat", "old"):
                await eventually(f"{name} is as declared", partial(shows, cluster, name, "two"), NOTICED_S)
            assert "the data are those of a backup" in running.log.read_text()
            await resting(running)
            await collect_garbage(cluster)
            # Nothing is made for a resource that the backup does not have, and nothing is replaced.
            assert await names_of(cluster) == {"chat", "old"}
            assert await uids(cluster) == before
            await edit(cluster, "chat", "four")
            await eventually("an edit is seen", lambda: shows(cluster, "chat", "four"), NOTICED_S)
            await edit(cluster, "late", "two")
            await eventually("a new one, too", lambda: shows(cluster, "late", "two"), NOTICED_S)
            assert await running.stop() == 0
        await cluster.kube.close()
