"""What a run reads from memory, what it does with that, and when it reads everything anew."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from tests.operator.controller.world import KEY, World

from disagg_operator.kube.errors import KubeError, Retry
from disagg_operator.kube.resources import DEPLOYMENT, DISAGG_DEPLOYMENT, OWNED, POD, SECRET, SERVICE, Resource
from disagg_operator.vocabulary import Obj


class Counted(World):
    """A world that counts the reads of the operator, and of which the cache may see nothing new."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**spec)
        self.reads: Counter[str] = Counter()
        self.kube.get = self._counted(self.kube.get)  # type: ignore[method-assign]
        self.listed = self.kube.list
        self.kube.list = self._counted(self.kube.list)  # type: ignore[method-assign]

    def _counted(self, call: Any) -> Any:
        async def counted(resource: Resource, *more: Any) -> Any:
            self.reads[resource.kind] += 1
            return await call(resource, *more)

        return counted

    async def blind(self) -> int:
        """Reconcile without any news for the cache, and return the number of reads."""
        self.reads.clear()
        try:
            await self.reconciler.run(KEY)
        except KubeError:
            self.views.doubt((KEY,))
        return self.reads.total()

    async def step(self) -> int:
        """Reconcile with all news, and return the number of reads."""
        counted, self.kube.list = self.kube.list, self.listed  # type: ignore[method-assign]
        for kind in self.cache._objects:
            resource = next(r for r in (*OWNED, DISAGG_DEPLOYMENT, POD) if r.kind == kind)
            self.cache.replace(resource, await self.listed(resource))
        self.kube.list = counted  # type: ignore[method-assign]
        return await self.blind()


FRESH = len(OWNED) + 3  # with the resource, the pods and the Secret


async def test_a_new_resource_is_created_without_a_read_and_then_costs_nothing() -> None:
    world = Counted()
    assert await world.step() == 0
    assert world.condition("Accepted")["status"] == "True"
    log = len(world.kube.log)
    assert (await world.blind(), await world.step(), len(world.kube.log)) == (0, 0, log)


async def test_an_edit_is_carried_out_from_a_fresh_read() -> None:
    world = Counted()
    await world.step()
    world.edit(decode={"replicas": 3})
    assert await world.step() == FRESH
    assert world.replicas("decode") == (3, 3)
    assert await world.step() == 0


async def test_an_edit_that_changes_no_child_is_accepted_from_a_fresh_read() -> None:
    world = Counted()
    await world.step()
    world.edit(rollout={"revisionHistoryLimit": 5})
    log = len(world.kube.log)
    assert await world.step() >= FRESH
    assert ("apply", "ConfigMap", "chat-accepted-spec") in world.kube.log[log:]
    assert await world.step() == 0


async def test_a_status_follows_what_the_cache_says_without_a_read() -> None:
    world = Counted()
    await world.step()
    for name in ("chat-prefill", "chat-decode", "chat-router"):
        found = world.kube.find("Deployment", name)
        count = found["spec"]["replicas"]
        found["status"] = {"replicas": count, "readyReplicas": count, "updatedReplicas": count}
        world.kube.put(found)
    before = world.status()
    assert await world.step() == 0
    assert world.status() != before


async def test_after_a_failure_everything_is_read_anew() -> None:
    world = Counted()
    await world.step()
    world.edit(decode={"replicas": 3})
    world.kube.fail_at_write = world.kube.writes + 1
    with pytest.raises(Retry):
        await world.run()
    world.kube.fail_at_write = None
    assert await world.blind() == FRESH
    assert world.replicas("decode") == (3, 3)


async def test_what_the_operator_wrote_itself_is_known_before_its_events_come() -> None:
    world = Counted()
    await world.step()
    world.edit(decode={"replicas": 3}, router={"replicas": 2})
    await world.step()
    log = len(world.kube.log)
    for _ in range(3):
        assert await world.blind() == 0
    assert len(world.kube.log) == log


async def test_an_old_cache_ends_in_a_fresh_read_and_never_in_an_old_state() -> None:
    world = Counted()
    await world.step()
    world.edit(decode={"replicas": 3})
    world.views.doubt((KEY,))
    await world.blind()  # reads the edit, of which no event has come
    assert world.replicas("decode") == (3, 3)
    await world.blind()
    assert world.replicas("decode") == (3, 3)


@pytest.mark.parametrize("kind", ["Service", "Deployment", "RoleBinding", "NetworkPolicy", "DisaggPool"])
async def test_a_child_that_is_gone_comes_back(kind: str) -> None:
    world = Counted()
    await world.step()
    name = world.kube.names(kind)[0]
    world.kube.remove(kind, name)
    await world.step()
    await world.step()
    assert name in world.kube.names(kind)


async def test_a_secret_that_is_gone_comes_back_within_two_minutes() -> None:
    world = Counted()
    await world.step()
    world.kube.remove("Secret", "chat-cluster-key")
    assert await world.step() == 0
    world.clock_s += 121.0
    assert await world.step() == 1 + FRESH
    assert world.kube.names("Secret") == ["chat-cluster-key"]


async def test_what_a_fresh_read_does_not_find_leaves_the_cache() -> None:
    world = Counted()
    await world.step()
    world.kube.remove("Service", "chat-router")
    world.views.doubt((KEY,))
    world.kube.invalid_names.add("chat-router")  # it is not made again
    await world.blind()
    assert world.cache.get(SERVICE, ("default", "chat-router")) is None


async def test_a_foreign_object_of_a_new_resource_is_found_by_the_write() -> None:
    world = Counted()
    foreign = world.kube.put(
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "chat-worker", "namespace": "default"}}
    )
    assert await world.step() > FRESH
    assert world.condition("Accepted")["reason"] == "NameConflict"
    assert world.kube.find("ServiceAccount", "chat-worker") == foreign
    assert world.kube.names("DisaggPool") == []


async def test_the_secret_of_a_predecessor_is_kept() -> None:
    world = Counted()
    await world.step()
    secret = world.kube.find("Secret", "chat-cluster-key")
    world.kube.remove("DisaggDeployment", "chat")
    orphan: Obj = {**secret, "metadata": {**secret["metadata"]}}
    orphan["metadata"].pop("ownerReferences")
    world.kube.put(orphan)
    world.restart()
    world.kube.put(World().kube.find("DisaggDeployment", "chat"))
    await world.step()
    await world.step()
    assert world.kube.find("Secret", "chat-cluster-key")["data"] == secret["data"]
    assert world.condition("Accepted")["status"] == "True"


async def test_a_resource_that_is_gone_is_forgotten() -> None:
    world = Counted()
    await world.step()
    world.kube.remove("DisaggDeployment", "chat")
    assert await world.step() == 1
    assert not world.views._secrets
    assert world.kube.names(DEPLOYMENT.kind) == world.kube.names(SECRET.kind) == []


async def test_what_was_written_of_a_resource_that_turns_out_refused_goes_again() -> None:
    world = Counted()
    apply = world.kube.apply

    async def refusing(obj: Obj, *, dry_run: bool = False) -> Obj:
        if obj["kind"] == "PodDisruptionBudget":
            world.kube.invalid_names.add(obj["metadata"]["name"])
            return await apply(obj, dry_run=True)
        return await apply(obj, dry_run=dry_run)

    world.kube.apply = refusing  # type: ignore[method-assign]
    await world.step()
    assert world.condition("Accepted")["reason"] == "InvalidSpec"
    assert {key[0] for key in world.kube.objects} == {"DisaggDeployment"}
    world.kube.apply = apply  # type: ignore[method-assign]
    world.kube.invalid_names.clear()
    await world.step()
    assert world.condition("Accepted")["status"] == "True"
    assert world.replicas("decode") == (2, 2)
