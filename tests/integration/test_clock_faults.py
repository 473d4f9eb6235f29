"""The operator process with a wall clock that is wrong and jumps, on a real API server.

A module that Python imports before the operator gives the process its clock: the real one and what
a file says.
"""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import pytest
from tests.integration.apiserver import REPO, ApiServer
from tests.integration.cluster_state import rests, uids
from tests.integration.edited_resource import QUICK, edit, shown
from tests.integration.faulty_api import FaultyApi
from tests.integration.operator_process import Cluster, eventually, operator

from disagg_operator.kube.resources import DEPLOYMENT, LEASE

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]

HOUR_S = 3600
_CLOCK = """
import datetime, time

_right, _now_s = datetime.datetime, time.time


def _wrong_by_s():
    with open({path!r}) as file:
        return float(file.read())


class datetime_of_this_process(_right):
    @classmethod
    def now(cls, tz=None):
        return _right.now(tz) + datetime.timedelta(seconds=_wrong_by_s())


datetime.datetime = datetime_of_this_process
time.time = lambda: _now_s() + _wrong_by_s()
"""


class WrongClock:
    """The wall clock of a process, and how wrong it is."""

    def __init__(self, folder: Path) -> None:
        self._file = folder / "wrong-by"
        self.set(0)
        (folder / "sitecustomize.py").write_text(_CLOCK.format(path=str(self._file)))
        self.python_path = f"{folder}:{REPO}/operator:{REPO}/worker"

    def set(self, seconds: float) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_text(str(seconds))
        fresh.replace(self._file)


async def wrong_by_s(cluster: Cluster) -> float:
    """Return how wrong the last transition that the operator wrote is."""
    conditions = (await cluster.resource())["status"]["conditions"]
    times = [datetime.datetime.fromisoformat(c["lastTransitionTime"]).timestamp() for c in conditions]
    return max(times) - time.time()


async def leads_since(cluster: Cluster) -> tuple[str, int]:
    found = await cluster.kube.get(LEASE, cluster.namespace, "disagg-operator")
    assert found is not None
    return found["spec"]["holderIdentity"], found["spec"].get("leaseTransitions", 0)


async def test_f22_a_wall_clock_that_jumps_changes_nothing_that_runs(
    server: ApiServer, cluster: Cluster, api: FaultyApi, tmp_path: Path
) -> None:
    clock = WrongClock(tmp_path)
    clock.set(HOUR_S)
    settings = QUICK | {"PYTHONPATH": clock.python_path, "DISAGG_LEASE_NAMESPACE": cluster.namespace}
    # Nothing serves here, so that the rollout never ends. A jump would let its deadline pass.
    rollout = {"progressDeadlineSeconds": 900, "autoRollback": True}
    async with operator(api.server, tmp_path, cluster.namespace, **settings) as running:
        await edit(cluster, "one", rollout=rollout)
        await shown(cluster, "one")
        await rests(api)
        assert await wrong_by_s(cluster) > 0.9 * HOUR_S, "the process has the wrong clock"
        before, leader = await uids(cluster), await leads_since(cluster)
        for seconds in (-HOUR_S, 3 * HOUR_S, 0):
            templates = [d["spec"] for d in await cluster.kube.list(DEPLOYMENT, cluster.namespace)]
            clock.set(seconds)
            await rests(api)
            assert [d["spec"] for d in await cluster.kube.list(DEPLOYMENT, cluster.namespace)] == templates
            assert (await cluster.condition("Progressing"))["status"] == "True"
            assert await cluster.replicas("decode") == (2, 2)
            await edit(cluster, f"at {seconds}", rollout=rollout)
            await shown(cluster, f"at {seconds}")
            await rests(api)
            assert await uids(cluster) == before
            assert await leads_since(cluster) == leader

        async def leading() -> bool:
            return await running.metric("disagg_operator_leading") == 1

        await eventually("it leads", leading)
        assert await running.stop() == 0
