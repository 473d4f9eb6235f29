"""Workers drain before their pool shrinks: the operator process on a real API server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.integration.apiserver import ApiServer
from tests.integration.operator_process import Cluster, Pods, eventually, operator
from tests.ports import free_port

from disagg_operator.kube.pods import DRAIN_UNTIL
from disagg_operator.kube.resources import EVENT, POD, annotations_of, name_of
from disagg_wire.cluster_key import bearer_of
from disagg_wire.drain_report import message_of

pytestmark = [pytest.mark.apiserver, pytest.mark.slow]
A, B, C = "127.0.0.21", "127.0.0.22", "127.0.0.23"
_MERGE = "application/merge-patch+json"


async def marked(cluster: Cluster) -> set[str]:
    """Return the addresses of the pods that are to go."""
    found = await cluster.kube.list(POD, cluster.namespace, "disagg.dev/pool=decode")
    return {pod["status"]["podIP"] for pod in found if DRAIN_UNTIL in annotations_of(pod)}


async def deployed(server: ApiServer, cluster: Cluster, port: int) -> dict[str, str]:
    """Deploy three decode workers, and return the names of their pods by address."""
    await cluster.apply_resource(decode={"replicas": 3})
    await eventually("the pool is there", lambda: cluster.replicas("decode"))
    return {address: await cluster.run_pod("decode", i, address, port) for i, address in enumerate((A, B, C))}


async def test_busy_workers_stay_until_they_are_idle_or_may_stay_for_good(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    pods, port = Pods(), free_port()
    pods.unfinished = {A: 1, B: 0, C: 2}
    pods.load = {A: 1, B: 0, C: 2}
    await pods.start([A, B, C], port)

    async def sizes(wanted: int, now: int, going: set[str]) -> None:
        async def seen() -> bool:
            return await cluster.replicas("decode") == (wanted, now) and await marked(cluster) == going

        await eventually(f"{now} for {wanted}, {going} go", seen)

    try:
        async with operator(server, tmp_path, cluster.namespace) as first:
            names = await deployed(server, cluster, port)
            await eventually("what runs where is known", lambda: _scraped(pods))
            await cluster.scale("chat-decode", 2)
            await sizes(2, 2, {B})
            await _delete(cluster, names[B])
            pods.unfinished = {A: 1, C: 1}
            await cluster.scale("chat-decode", 1)
            await eventually("another one is to go", lambda: marked(cluster))
            (going,) = await marked(cluster)
            await sizes(1, 2, {going})
            assert pods.bearers == {f"Bearer {bearer_of(await cluster.bearer_key())}"}
            assert pods.leases[going] > 0
            await first.stop()
        async with operator(server, tmp_path, cluster.namespace):  # the next one finds the mark
            await cluster.scale("chat-decode", 2)
            await sizes(2, 2, set())
            assert pods.leases[going] == 0  # called back
            await cluster.scale("chat-decode", 1)
            await eventually("one is to go again", lambda: marked(cluster))
            (going,) = await marked(cluster)
            await sizes(1, 2, {going})
            pods.unfinished[going] = 0
            await sizes(1, 1, {going})
    finally:
        await pods.stop()


async def test_what_was_cut_off_at_the_end_of_a_drain_is_told_once(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    ends: list[dict[str, Any]] = []

    async def end(path: str, name: str, **ended: Any) -> None:
        """Let a container of a pod end, as the kubelet would tell."""
        status = {"image": "x", "imageID": "", "ready": False, "restartCount": 0}
        ends.append(status | {"name": name, "state": {"terminated": ended}})
        await cluster.raw("PATCH", f"{path}/status", {"status": {"containerStatuses": ends}}, _MERGE)

    async def told(number: int) -> list[str]:
        found = await cluster.kube.list(EVENT, cluster.namespace)
        messages = [str(event["message"]) for event in found if event["reason"] == "DrainTimedOut"]
        assert len(messages) == number, messages
        return messages

    async with operator(server, tmp_path, cluster.namespace) as running:
        names = await deployed(server, cluster, free_port())
        path = POD.path(cluster.namespace, names[A])
        # What keeps the pod in the store stands for the kubelet.
        await cluster.raw("PATCH", path, {"metadata": {"finalizers": ["test.dev/kubelet"]}}, _MERGE)
        await _delete(cluster, names[A])
        await end(path, "main", exitCode=0, message=message_of(3))
        (message,) = await eventually("an Event", lambda: told(1))
        assert f"decode {names[A]}: requests cut off at the end of its drain: 3" in message
        assert await running.metric('disagg_operator_drains_total{outcome="timed_out"}') == 1
        assert await running.metric('disagg_operator_drain_cut_requests_total{component="decode"}') == 3
        assert await running.stop() == 0
    async with operator(server, tmp_path, cluster.namespace) as after:
        # The next operator tells what is new, and not what was told.
        await end(path, "side", exitCode=137, message=message_of(2))
        messages = await eventually("another Event", lambda: told(2))
        assert any("killed before the end of its drain; its requests: 2" in message for message in messages)
        assert await after.metric('disagg_operator_drains_total{outcome="killed"}') == 1
        assert await after.metric('disagg_operator_drain_cut_requests_total{component="decode"}') == 2
        await cluster.raw("PATCH", path, {"metadata": {"finalizers": None}}, _MERGE)


async def test_a_worker_that_the_kubelet_has_evicted_and_one_that_does_not_answer_are_told_of(
    server: ApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    async def messages(reason: str) -> list[str]:
        found = await cluster.kube.list(EVENT, cluster.namespace)
        return [str(event["message"]) for event in found if event["reason"] == reason]

    async with operator(server, tmp_path, cluster.namespace) as running:
        names = await deployed(server, cluster, free_port())  # nobody listens there
        status = {"name": "main", "image": "x", "imageID": "", "ready": False, "restartCount": 0}
        ended = {"terminated": {"exitCode": 137, "message": message_of(4)}}
        evicted = {"phase": "Failed", "reason": "Evicted", "containerStatuses": [status | {"state": ended}]}
        path = POD.path(cluster.namespace, names[A])
        await cluster.raw("PATCH", f"{path}/status", {"status": evicted}, _MERGE)
        (message,) = await eventually("the eviction", lambda: messages("DrainTimedOut"))
        assert f"decode {names[A]}: killed before the end of its drain; its requests: 4" in message
        await cluster.scale("chat-decode", 1)
        (message,) = await eventually("no answer", lambda: messages("DrainUnanswered"))
        assert "no answer to the call to drain" in message
        assert await running.metric('disagg_operator_drains_total{outcome="unanswered"}') >= 1


async def _scraped(pods: Pods) -> bool:
    return min(pods.scrapes[address] for address in (A, B, C)) > 1


async def _delete(cluster: Cluster, pod: str) -> None:
    found = await cluster.kube.get(POD, cluster.namespace, pod)
    assert found is not None
    assert name_of(found) == pod
    options = {"apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0}
    await cluster.raw("DELETE", POD.path(cluster.namespace, pod), options, "application/json")
