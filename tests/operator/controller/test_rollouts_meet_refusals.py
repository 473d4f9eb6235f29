"""Rollouts while something is refused, as a worker changes its role, and of orphans."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from tests.operator.controller.rolling import A_MODEL, ROLES, Rolling
from tests.operator.controller.test_faults import orphaned
from tests.operator.controller.test_rollouts import _break, settled
from tests.operator.controller.world import KEY

from disagg_operator.autoscaling.policy.role_moves import Flip
from disagg_operator.controller import pod_moves
from disagg_operator.desired import Images
from disagg_operator.kube.errors import Invalid
from disagg_operator.kube.resources import annotations_of
from disagg_operator.rollout.looking import SERVED_ANNOTATION
from disagg_operator.vocabulary import UPDATE_RUNTIME

BAD = {"replicas": 2, "kvCacheSize": "0"}


def forbid(world: Rolling, word: str) -> None:
    """Let the API server refuse the Deployments that hold a word."""
    apply = type(world.kube).apply

    async def judged(obj: Any, *, dry_run: bool = False) -> Any:
        if obj["kind"] == "Deployment" and word in json.dumps(obj):
            raise Invalid("apply: spec.template: wrong")
        return await apply(world.kube, obj, dry_run=dry_run)

    world.kube.apply = judged  # type: ignore[method-assign]


def allow(world: Rolling) -> None:
    del world.kube.apply


async def failed(**spec: Any) -> Rolling:
    """Return a deployment that has gone back from a revision whose pods never became ready."""
    world = await settled(rollout={"progressDeadlineSeconds": 600, "autoRollback": True, **spec})
    world.edit(model=A_MODEL)
    await world.run()
    world.broken |= {key[1] for key, o in world.workloads().items() if SERVED_ANNOTATION not in annotations_of(o)}
    await world.roll()
    world.later(601)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolledBack"
    return world


@pytest.mark.parametrize("restarted", [False, True])
async def test_a_refused_edit_does_not_try_a_failed_revision_again_and_another_one_does(restarted: bool) -> None:
    world = await failed()
    made = world.made
    world.edit(decode=BAD)
    if restarted:
        world.restart()
        world.kubelets()
    await world.roll()
    assert world.condition("Accepted")["status"] == "False"
    assert world.condition("Progressing")["reason"] == "RolledBack"
    world.edit(decode={"replicas": 2})  # nothing has changed since the revision failed
    await world.roll()
    assert (world.condition("Accepted")["status"], world.condition("Progressing")["reason"]) == ("True", "RolledBack")
    assert world.made == made
    world.edit(decode={"replicas": 3})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RollingOut"


async def test_a_revision_that_fails_while_a_later_edit_is_refused_is_given_up() -> None:
    world = await settled(rollout={"progressDeadlineSeconds": 600, "autoRollback": True})
    await _break(world)
    world.edit(decode=BAD)
    await world.roll()
    world.later(601)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolledBack"
    assert world.replicas_of("prefill") == {"chat-prefill": 2}


async def test_a_router_that_waits_for_the_workers_is_judged_with_them() -> None:
    world = await settled()
    forbid(world, "team-of-nobody")
    before = world.replicas_of("prefill")
    labels = {"podTemplate": {"metadata": {"labels": {"team": "team-of-nobody"}}}}
    world.edit(model=A_MODEL, router={"replicas": 1, **labels})
    await world.roll()
    assert world.condition("Accepted")["status"] == "False"
    assert world.replicas_of("prefill") == before
    world.edit(router={"replicas": 1})
    await world.roll()
    assert world.condition("Accepted")["status"] == "True"
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_a_router_that_is_forbidden_by_now_does_not_stop_a_rollout_of_workers() -> None:
    world = await settled()
    world.edit(model=A_MODEL)
    await world.run()
    world.kubelets()
    world.kube.invalid_names.add("chat-router")
    await world.roll()
    assert world.condition("Accepted")["message"].startswith("spec.router: ")
    for role in ROLES:
        assert world.replicas_of(role) == {f"chat-{role}-{world.revision_of(role)}": 2}


async def test_new_workers_that_may_not_grow_leave_the_old_ones_alone() -> None:
    world = await settled(prefill={"replicas": 3}, decode={"replicas": 3}, rollout={"progressDeadlineSeconds": 600})
    world.edit(model=A_MODEL)
    await world.run()
    world.kubelets()
    world.kube.invalid_names |= {o["metadata"]["name"] for o in world.workloads().values()}
    await world.roll()
    for role in ROLES:
        assert sorted(world.replicas_of(role).values()) == [1, 2]
    assert world.condition("Progressing")["reason"] == "RollingOut"
    world.later(601)  # what is refused is no progress
    await world.roll()
    assert world.condition("Progressing")["reason"] == "ProgressDeadlineExceeded"
    assert world.least_pairs >= 1


@pytest.mark.parametrize("auto", [0, 1])
async def test_an_update_of_the_runtime_that_is_refused_changes_nothing_and_holds_up_nothing(auto: int) -> None:
    world = await settled()
    world.images, world.runtime_updates = Images(worker="w:2", router="r:2"), auto
    world.restart()
    world.kubelets()
    forbid(world, "w:2")
    if not auto:
        found = copy.deepcopy(world.kube.find("DisaggDeployment", "chat"))
        found["metadata"].setdefault("annotations", {})[UPDATE_RUNTIME] = "1"
        world.kube.put(found)
    await world.roll()
    assert (world.condition("Accepted")["status"], world.condition("Progressing")["reason"]) == (
        "True",
        "RolloutComplete",
    )
    update = world.condition("RuntimeUpToDate")
    assert update["status"] == "False"
    assert "worker w:1 -> w:2, router r:1 -> r:2 (refused: spec.prefill: " in update["message"]
    world.kube.scale("chat-decode", 4)
    world.edit(router={"replicas": 2})
    await world.roll()
    assert world.replicas_of("decode") == {"chat-decode": 4}
    assert world.kube.find("Deployment", "chat-router")["spec"]["replicas"] == 2
    # The operator begins with no other deployment meanwhile.
    assert world.updates.may_begin(("default", "other")) is False
    allow(world)
    await world.roll()
    assert world.condition("RuntimeUpToDate")["status"] == "True"
    assert world.replicas_of("decode") == {f"chat-decode-{world.revision_of('decode')}": 4}


async def test_a_worker_that_changes_its_role_as_a_rollout_begins_keeps_its_pool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = await settled()
    pod = world.pods(next(key for key in world.workloads() if key[0] == "prefill"))[0]["metadata"]["name"]
    entry = world.live.of(KEY, world.kube.find("DisaggDeployment", "chat")["metadata"]["uid"])
    entry.flip = Flip(pod, "prefill", "decode", 0.0, changed=True)
    world.edit(model=A_MODEL)
    monkeypatch.setattr(pod_moves, "move", None)
    await world.roll()
    assert entry.flip is None
    for role in ROLES:
        assert world.replicas_of(role) == {f"chat-{role}-{world.revision_of(role)}": 2}


def recreated(world: Rolling) -> None:
    """Make a resource of the same name anew."""
    found = copy.deepcopy(world.kube.find("DisaggDeployment", "chat"))
    del found["status"]
    found["metadata"] = {key: found["metadata"][key] for key in ("name", "namespace")}
    orphaned(world)
    world.restart()
    world.kube.put(found)
    world.kubelets()


async def test_orphans_of_two_revisions_are_adopted_as_they_are() -> None:
    world = await settled(rollout={"paused": True})
    world.edit(model=A_MODEL)
    await world.roll()
    recreated(world)
    before, made = {key: o["spec"] for key, o in world.workloads().items()}, world.made
    await world.roll()
    assert {key: o["spec"] for key, o in world.workloads().items()} == before
    assert world.made == made
    world.kube.remove("DisaggDeployment", "chat")
    assert {key[0] for key in world.kube.objects} == {"Pod", "NetworkPolicy"}
    for name in world.kube.names("Pod"):
        world.kube.remove("Pod", name)
    assert world.kube.objects == {}


async def test_an_old_workload_whose_pool_was_deleted_without_it_gets_the_new_pool_as_its_owner() -> None:
    world = await settled(rollout={"paused": True})
    world.edit(model=A_MODEL)
    await world.roll()
    world.kube.objects.pop(("DisaggPool", "default", "chat-prefill"))
    world.kube.find("Deployment", "chat-prefill")["metadata"].pop("ownerReferences")
    await world.roll()
    (owner,) = world.kube.find("Deployment", "chat-prefill")["metadata"]["ownerReferences"]
    assert owner["uid"] == world.kube.find("DisaggPool", "chat-prefill")["metadata"]["uid"]


async def test_the_children_of_a_predecessor_do_not_vouch_for_the_spec_of_a_new_resource() -> None:
    world = await settled()
    before = world.snapshot()
    resource = world.kube.objects.pop(("DisaggDeployment", "default", "chat"))
    resource = {**resource, "metadata": {"name": "chat", "namespace": "default"}}
    del resource["status"]
    world.kube.put(resource)
    assert await world.run() is not None
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "NameConflict")
    assert "what was accepted last is served" not in accepted["message"]
    after = world.snapshot()
    assert {key for key in after if after[key] != before[key]} <= {("DisaggDeployment", "default", "chat")}
