"""Workers finish their requests before they are deleted, and may be called back until then."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

import pytest
from tests.operator.controller.rolling import A_MODEL, Rolling
from tests.operator.controller.world import KEY

from disagg_operator.autoscaling.signals.direct import Target
from disagg_operator.controller.drainer import ASK_INTERVAL_S, Drainer
from disagg_operator.controller.victims import left_s
from disagg_operator.kube.errors import Retry
from disagg_operator.kube.pods import DRAIN_UNTIL, epoch_s
from disagg_operator.kube.resources import annotations_of
from disagg_operator.vocabulary import Obj

COST = "controller.kubernetes.io/pod-deletion-cost"


class Drained(Rolling):
    """A deployment of workers that can be told to take nothing new.

    `requests` holds what runs on a worker, by the name of its pod. Workers in `old` do not know the
    call, those in `deaf` do not answer. Pods are deleted as a ReplicaSet does.
    """

    def __init__(self, **spec: Any) -> None:
        self.requests: dict[str, int] = {}
        self.on_notice: dict[str, float] = {}
        self.old: set[str] = set()
        self.deaf: set[str] = set()
        self.asked = 0
        self.cancelled = 0
        self.cut: list[str] = []
        super().__init__(**spec)

    def restart(self) -> None:
        super().restart()
        self.drainer = Drainer(self.kube, self.ask, self.woken.append, lambda: self.clock_s, self._cancel)
        self.reconciler._drainer = self.drainer

    def _cancel(self) -> None:
        self.cancelled += 1

    async def ask(self, target: Target, content: Mapping[str, Any]) -> int | None:
        assert target.path == "/internal/v1/drain"
        assert target.bearer
        self.asked += 1
        name = "p" + target.address.rpartition(".")[2]
        if name in self.deaf or name in self.old:
            return None if name in self.deaf else 404
        self.on_notice[name] = self.clock_s + content["lease_s"]
        return 202 if self.requests.get(name) else 200

    def refuses(self, pod: str) -> bool:
        """Return whether the worker takes nothing new."""
        return self.on_notice.get(pod, 0.0) > self.clock_s

    def last_first(self, pods: list[Obj]) -> list[Obj]:
        def rank(pod: Obj) -> tuple[bool, int]:
            ready = pod["status"]["conditions"][0]["status"] == "True"
            return not ready, -int(annotations_of(pod).get(COST, 0))

        order = sorted(pods, key=rank)
        return order

    def _make(self, key: tuple[str, str], deployment: Obj) -> None:
        super()._make(key, deployment)
        pod = copy.deepcopy(self.kube.find("Pod", f"p{self.made}"))
        pod["status"] |= {"phase": "Running", "podIP": f"10.0.0.{self.made}"}
        self.kube.put(pod)

    def kubelets(self) -> None:
        before = {name for kind, _, name in self.kube.objects if kind == "Pod"}
        super().kubelets()
        gone = before - {name for kind, _, name in self.kube.objects if kind == "Pod"}
        self.cut += [name for name in sorted(gone) if self.requests.get(name)]

    def marked(self) -> set[str]:
        pods = [o for (kind, _, _), o in self.kube.objects.items() if kind == "Pod"]
        return {pod["metadata"]["name"] for pod in pods if DRAIN_UNTIL in annotations_of(pod)}

    def names(self, role: str) -> set[str]:
        return {pod["metadata"]["name"] for key in self.workloads() if key[0] == role for pod in self.pods(key)}

    def load(self, **requests: int) -> None:
        """Let workers have requests, of which the operator has seen the metrics."""
        self.requests = requests
        uid = self.kube.find("DisaggDeployment", "chat")["metadata"]["uid"]
        self.live.of(KEY, uid).loads = {pod: float(requests.get(pod, 0)) for pod in self.names("decode")}

    async def serving(self, decode: int = 3) -> list[str]:
        """Deploy, and return the names of the decode workers."""
        self.edit(prefill={"replicas": 1}, decode={"replicas": decode})
        await self.roll()
        return sorted(self.names("decode"))


async def test_idle_workers_leave_at_once() -> None:
    """One reconcile asks them, marks them and makes the Deployment smaller."""
    world = Drained()
    a, b, c = await world.serving()
    world.load(**{a: 2, c: 1})
    world.kube.scale("chat-decode", 2)
    await world.run()
    assert world.replicas("decode") == (2, 2)
    assert (world.asked, world.marked()) == (1, {b})
    world.kubelets()
    assert (world.names("decode"), world.cut) == ({a, c}, [])
    await world.roll()


async def test_a_busy_worker_stays_until_it_has_finished_and_nothing_is_written_meanwhile() -> None:
    world = Drained()
    a, b, c = await world.serving()
    world.load(**{a: 2, b: 3, c: 1})
    world.kube.scale("chat-decode", 1)
    wait_s = await world.run()
    assert world.replicas("decode") == (1, 3)
    assert world.marked() == {a, c}
    assert wait_s == pytest.approx(300, abs=2)
    assert all(map(world.refuses, (a, c)))
    assert not world.refuses(b)
    world.kubelets()
    await world.roll()
    writes = world.kube.writes
    for _ in range(60):  # the leases are renewed without a reconcile, and without a write
        world.clock_s += ASK_INTERVAL_S
        await world.drainer.look()
    assert all(map(world.refuses, (a, c)))
    await world.run()
    assert (world.kube.writes, world.woken) == (writes, [])
    world.requests[c] = 0
    await world.drainer.look()
    assert world.woken == [KEY]
    await world.run()
    assert world.replicas("decode") == (1, 2)
    world.kubelets()
    assert world.names("decode") == {a, b}
    world.requests[a] = 0
    await world.drainer.look()
    await world.run()
    world.kubelets()
    assert (world.names("decode"), world.cut) == ({b}, [])
    await world.roll()
    assert not world.marked()
    asked = world.asked
    await world.drainer.look()
    assert world.asked == asked


async def test_status_counts_a_worker_that_drains_as_gone() -> None:
    world = Drained()
    names = await world.serving()
    world.load(**dict.fromkeys(names, 1))
    world.kube.scale("chat-decode", 1)
    await world.roll()
    pool = world.status()["pools"][1]
    assert (pool["desired"], pool["current"], pool["ready"]) == (1, 1, 1)
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_workers_are_called_back_when_the_pool_may_keep_them() -> None:
    world = Drained()
    a, b, c = await world.serving()
    world.load(**{a: 5, b: 4, c: 3})
    world.kube.scale("chat-decode", 1)
    await world.roll()
    assert world.marked() == {b, c}
    world.kube.scale("chat-decode", 2)
    await world.run()
    assert world.marked() == {c}
    assert [world.refuses(pod) for pod in (a, b, c)] == [False, False, True]
    world.kube.scale("chat-decode", 3)
    await world.roll()
    assert not world.marked()
    assert not any(map(world.refuses, (a, b, c)))
    assert (world.names("decode"), world.cancelled, world.made) == ({a, b, c}, 2, 4)
    assert COST not in annotations_of(world.kube.find("Pod", c))


async def test_a_worker_that_has_had_sigterm_is_replaced() -> None:
    """The ReplicaSet has deleted it already when the pool grows again."""
    world = Drained()
    names = await world.serving()
    world.kube.scale("chat-decode", 2)
    await world.run()
    world.kubelets()
    world.kube.scale("chat-decode", 3)
    await world.roll()
    assert len(world.names("decode") & set(names)) == 2
    assert len(world.names("decode")) == 3
    assert not world.marked()


async def test_an_operator_that_is_killed_leaves_marks_by_which_the_next_one_goes_on() -> None:
    world = Drained()
    a, b, c = await world.serving()
    world.load(**{a: 1, b: 9, c: 2})
    world.kube.scale("chat-decode", 1)
    world.kube.fail_at_write = world.kube.writes + 2  # after the first mark
    with pytest.raises(Retry):
        await world.run()
    world.kube.fail_at_write = None
    assert len(world.marked()) == 1
    world.restart()
    world.load(**{a: 9, b: 1, c: 9})  # the next one would choose others
    first = world.marked()
    await world.roll()
    assert first < world.marked()
    world.clock_s += 31  # without an operator the workers serve again
    assert not any(map(world.refuses, (a, b, c)))
    world.restart()
    world.kube.scale("chat-decode", 3)
    await world.roll()
    assert not world.marked()


@pytest.mark.parametrize("grows", [False, True])
async def test_an_operator_may_be_killed_between_any_two_writes(grows: bool) -> None:
    """A pool becomes smaller, and perhaps larger again, while its workers are busy."""
    for number in range(1, 9):
        world = Drained()
        a, b, c = await world.serving()
        world.load(**{a: 3, b: 2, c: 1})
        before = world.kube.writes
        world.kube.scale("chat-decode", 1)
        world.kube.fail_at_write = before + number
        with contextlib.suppress(Retry):
            await world.run()
        world.kube.fail_at_write = None
        world.restart()
        if grows:
            world.kube.scale("chat-decode", 3)
        await world.roll()
        world.requests = {}
        world.clock_s += 11
        await world.roll()
        assert (world.cut, world.marked(), len(world.names("decode"))) == ([], set(), 3 if grows else 1)
        if grows:
            assert world.names("decode") == {a, b, c}


async def test_at_the_deadline_a_worker_goes_whatever_runs_there() -> None:
    world = Drained(decode={"replicas": 2, "drain": {"timeoutSeconds": 60}})
    await world.roll()
    world.load(**dict.fromkeys(world.names("decode"), 1))
    world.kube.scale("chat-decode", 1)
    await world.roll()
    (victim,) = world.marked()
    assert left_s(world.kube.find("Pod", victim), epoch_s(world.now)) == 60
    world.later(59)
    assert await world.run() == 1
    assert world.replicas("decode") == (1, 2)
    world.later(2)
    await world.run()
    assert world.replicas("decode") == (1, 1)
    world.kubelets()
    assert world.cut == [victim]
    await world.roll()


async def test_a_worker_of_an_earlier_release_goes_at_once_as_before() -> None:
    world = Drained()
    names = await world.serving()
    world.old = set(names)
    world.load(**{names[0]: 7, names[1]: 1, names[2]: 7})
    world.kube.scale("chat-decode", 2)
    await world.run()
    assert world.replicas("decode") == (2, 2)
    assert not world.marked()
    world.kubelets()
    assert world.cut == [names[1]]


async def test_a_worker_that_does_not_answer_is_not_waited_for_longer_than_three_calls() -> None:
    world = Drained()
    names = await world.serving()
    world.deaf = set(names)
    world.kube.scale("chat-decode", 2)
    await world.run()
    assert world.replicas("decode") == (2, 3)
    for _ in range(2):
        await world.drainer.look()
    assert world.woken == [KEY]
    await world.run()
    assert world.replicas("decode") == (2, 2)


async def test_a_worker_that_is_not_ready_goes_first_and_is_not_asked() -> None:
    world = Drained()
    a, b, c = await world.serving()
    pod = copy.deepcopy(world.kube.find("Pod", b))
    pod["status"]["conditions"][0]["status"] = "False"
    world.kube.put(pod)
    world.load(**{b: 9})
    world.kube.scale("chat-decode", 2)
    await world.run()
    assert (world.replicas("decode"), world.asked) == ((2, 2), 0)
    world.kubelets()
    assert world.names("decode") == {a, c}


async def test_a_resource_that_is_deleted_is_forgotten() -> None:
    world = Drained()
    names = await world.serving()
    world.load(**dict.fromkeys(names, 1))
    world.kube.scale("chat-decode", 1)
    await world.run()
    world.kube.remove("DisaggDeployment", "chat")
    await world.run()
    asked = world.asked
    await world.drainer.look()
    assert world.asked == asked


async def test_an_operator_that_does_not_lead_any_more_asks_nobody() -> None:
    world = Drained()
    names = await world.serving()
    world.load(**dict.fromkeys(names, 1))
    world.kube.scale("chat-decode", 1)
    await world.run()
    world.drainer._may_act = lambda: False
    asked = world.asked
    await world.drainer.look()
    world.drainer._may_act = lambda: True
    await world.drainer.look()
    assert world.asked == asked


async def test_old_workers_of_a_rollout_drain_before_they_go() -> None:
    world = Drained()
    await world.roll()
    old = world.names("prefill") | world.names("decode")
    world.requests = dict.fromkeys(old, 1)
    world.edit(model=A_MODEL)
    await world.roll()
    # The old workers that wait are held, so that no more than the surge of new ones is there.
    assert world.marked() < old < world.names("prefill") | world.names("decode")
    assert [len(world.marked() & world.names(role)) for role in ("prefill", "decode")] == [1, 1]
    assert [len(world.names(role)) for role in ("prefill", "decode")] == [3, 3]
    for _ in range(2):
        world.requests = {}
        world.clock_s += 11
        await world.roll()
    assert (world.cut, world.marked()) == ([], set())
    assert not old & (world.names("prefill") | world.names("decode"))
    assert world.least_pairs >= 1


async def test_a_revert_in_the_middle_of_a_rollout_calls_the_old_workers_back() -> None:
    world = Drained()
    model = world.kube.find("DisaggDeployment", "chat")["spec"]["model"]
    await world.roll()
    old = world.names("prefill") | world.names("decode")
    world.requests = dict.fromkeys(old, 1)
    world.edit(model=A_MODEL)
    for _ in range(40):
        await world.run()
        world.kubelets()
        if world.marked():
            break
    assert world.marked() <= old
    world.edit(model=model)
    world.clock_s += 11
    await world.roll()
    assert not world.marked()
    assert world.names("prefill") | world.names("decode") == old
    assert not any(map(world.refuses, old))
    assert world.cut == []


async def test_without_room_the_new_pair_comes_when_the_old_one_has_drained_and_is_gone() -> None:
    world = Drained(rollout={"strategy": "Recreate", "maxSurge": 0}, prefill={"replicas": 1}, decode={"replicas": 1})
    await world.roll()
    old = world.names("prefill") | world.names("decode")
    world.requests = dict.fromkeys(old, 1)
    world.edit(model=A_MODEL)
    await world.roll()
    assert world.marked() == old == world.names("prefill") | world.names("decode")
    world.requests = {}
    world.clock_s += 11
    await world.roll()
    assert (world.cut, len(world.names("decode") - old)) == ([], 1)
    text = world.metrics.text().decode()
    assert 'disagg_operator_pool_exchanges_total{disagg_deployment="chat",namespace="default"} 1.0' in text


async def test_a_deployment_without_pods_that_takes_another_revision_keeps_its_size() -> None:
    world = Drained()
    await world.settle()
    world.edit(model=A_MODEL)
    await world.settle()
    assert (world.replicas("prefill"), world.replicas("decode")) == ((2, 2), (2, 2))
