"""Rollouts that meet pools without workers: suspended ones, and those that are scaled to zero."""

from __future__ import annotations

import copy

import pytest
from tests.operator.controller.rolling import A_MODEL, ROLES, Rolling, settled
from tests.operator.controller.test_canary_rollouts import BAD, OLD, SAME_NAME
from tests.operator.controller.world import KEY

from disagg_operator.autoscaling.live import Live
from disagg_operator.autoscaling.policy.idling import IdleWatch
from disagg_operator.kube.resources import annotations_of
from disagg_operator.rollout.looking import SERVED_ANNOTATION

BACK = {"rollout": {"progressDeadlineSeconds": 600, "autoRollback": True}}
ZERO = {**BACK, "scaling": {"scaleToZero": {"idleSeconds": 60}}}
RENAMED = {**A_MODEL, "name": "new-name"}


def entry(world: Rolling) -> Live:
    return world.live.of(KEY, world.kube.find("DisaggDeployment", "chat")["metadata"]["uid"])


def idle(world: Rolling) -> None:
    entry(world).idle = IdleWatch(frozenset("r"), 0.0, 100.0, world.clock_s)


async def rest(world: Rolling) -> None:
    idle(world)
    await world.roll()
    assert {role: sum(world.replicas_of(role).values()) for role in ROLES} == {"prefill": 0, "decode": 0}


async def wake(world: Rolling) -> None:
    """Let a request ask for workers, and reconcile once."""
    entry(world).idle, entry(world).wake = IdleWatch(), True
    await world.run()


def break_the_new(world: Rolling) -> None:
    world.broken |= {key[1] for key, o in world.workloads().items() if SERVED_ANNOTATION not in annotations_of(o)}


def router_name(world: Rolling) -> str:
    """Return the name of the model that the routers know from the start."""
    env = world.kube.find("Deployment", "chat-router")["spec"]["template"]["spec"]["containers"][0]["env"]
    return str(next(e["value"] for e in env if e["name"] == "DISAGG_MODEL_NAME"))


async def fails(world: Rolling) -> None:
    """Let the new workers never become ready, until the deadline has passed."""
    break_the_new(world)
    await world.roll()
    assert not world.status()["rollout"]["target"].startswith(world.status()["revision"]["current"])
    world.later(601)
    await world.roll()


@pytest.mark.parametrize("when", ["at zero", "in the middle"])
async def test_a_suspension_loses_no_way_back(when: str) -> None:
    world = await settled(**BACK)
    current = world.status()["revision"]["current"]
    if when == "in the middle":
        world.edit(model=A_MODEL)
        await world.run()
        break_the_new(world)
        world.kubelets()
    world.edit(suspend=True)
    await world.roll()
    if when == "at zero":
        world.edit(model=A_MODEL)
        await world.roll()
    assert world.replicas_of("prefill")["chat-prefill"] == 0
    world.restart()
    world.edit(suspend=False)
    await world.run()
    (new,) = [name for name in world.replicas_of("prefill") if name != "chat-prefill"]
    assert world.replicas_of("prefill") == {"chat-prefill": 0, new: 2}
    await fails(world)
    assert world.replicas_of("prefill") == {"chat-prefill": 2}
    assert world.condition("Progressing")["reason"] == "RolledBack"
    assert world.condition("Available")["status"] == "True"
    assert world.status()["revision"]["current"] == current


async def test_what_was_edited_at_zero_and_serves_replaces_what_was_there() -> None:
    world = await settled(**ZERO)
    await rest(world)
    for number in range(3):  # what never served leaves nothing behind
        world.edit(model={"uri": f"file:///models/m{number}"})
        await world.roll()
    assert len(world.workloads()) == 4
    await wake(world)
    await world.roll()
    assert [list(world.replicas_of(role).values()) for role in ROLES] == [[2], [2]]
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    assert "rollout" not in world.status()


async def test_an_edit_at_zero_that_is_reverted_there_wakes_what_served() -> None:
    world = await settled(**ZERO)
    first = copy.deepcopy(world.kube.find("DisaggDeployment", "chat")["spec"]["model"])
    await rest(world)
    for model in (A_MODEL, first):
        world.edit(model=model)
        await world.roll()
    assert world.replicas_of("prefill") == {"chat-prefill": 0}
    await wake(world)
    await world.roll()
    assert world.replicas_of("prefill") == {"chat-prefill": 2}


async def test_without_a_way_back_it_is_stalled_and_says_what_to_do() -> None:
    world = await settled(rollout={"progressDeadlineSeconds": 600})
    world.edit(suspend=True)
    await world.roll()
    world.edit(model=A_MODEL)
    await world.roll()
    world.edit(suspend=False)
    await world.run()
    await fails(world)
    assert world.condition("Progressing")["reason"] == "ProgressDeadlineExceeded"
    assert world.replicas_of("prefill")["chat-prefill"] == 0


@pytest.mark.parametrize("drains", [False, True])
async def test_routers_know_the_new_name_at_zero_and_the_old_one_after_a_rollback(drains: bool) -> None:
    """Otherwise a request for the name that is served next would find no model, and wake nobody."""
    world = await settled(**ZERO)
    if drains:
        idle(world)
        await world.run()  # the workers are told to go, and their pods are still there
        assert world.pods(next(iter(world.workloads())))
    else:
        await rest(world)
    world.edit(model=RENAMED)
    await world.run()
    assert router_name(world) == "new-name"
    await world.roll()
    await wake(world)
    assert router_name(world) == "new-name"
    await fails(world)
    assert world.condition("Progressing")["reason"] == "RolledBack"
    assert router_name(world) == "stdlib-llama"
    before = len(world.kube.log)
    await world.roll()
    assert len(world.kube.log) == before
    world.edit(model=A_MODEL)
    world.broken.clear()
    await world.roll()
    assert (router_name(world), world.condition("Progressing")["reason"]) == ("other", "RolloutComplete")


async def test_what_has_gone_back_goes_to_zero_and_comes_back_as_it_was() -> None:
    world = await settled(**ZERO)
    world.edit(model=A_MODEL)
    await world.run()
    await fails(world)
    assert world.condition("Progressing")["reason"] == "RolledBack"
    await rest(world)
    assert world.condition("ScaledToZero")["reason"] == "Idle"
    assert world.condition("Available")["reason"] == "ScaledToZero"
    # It says on that the declared revision is not what is served.
    assert world.condition("Ready")["reason"] == world.condition("Progressing")["reason"] == "RolledBack"
    world.restart()
    await wake(world)
    await world.roll()
    assert world.replicas_of("prefill") == {"chat-prefill": 2}
    assert world.condition("Progressing")["reason"] == "RolledBack"


async def test_what_has_failed_its_canary_goes_to_zero_as_well() -> None:
    canary = {"canary": {"weight": 10, "minRequests": 100}}
    world = await settled(rollout=canary, scaling=ZERO["scaling"])
    world.edit(model=SAME_NAME)
    await world.roll()
    world.serve(BAD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "CanaryFailed"
    await rest(world)
    await wake(world)
    await world.roll()
    assert world.replicas_of("prefill") == {"chat-prefill": 2}
    assert world.condition("Progressing")["reason"] == "CanaryFailed"


async def test_a_canary_at_zero_has_proven_nothing() -> None:
    world = await settled(rollout={"canary": {}, **BACK["rollout"]}, scaling=ZERO["scaling"])
    await rest(world)
    world.edit(model=SAME_NAME)
    await world.roll()
    assert world.revisions()[-1].canary is None
    await wake(world)
    await fails(world)
    assert world.condition("Progressing")["reason"] == "RolledBack"


async def test_status_says_why_an_idle_deployment_stays() -> None:
    world = await settled(**ZERO)
    entry(world).awake = ("CanaryInconclusive", "the canary waits for a person")
    await world.settle()
    found = world.condition("ScaledToZero")
    assert (found["status"], found["reason"]) == ("False", "CanaryInconclusive")
    assert world.condition("Ready")["status"] == "True"
    assert not {"CanaryInconclusive", "ScaledToZero", "Woken"} & {e["reason"] for e in world.kube.events}
    entry(world).awake = None
    await world.settle()
    assert not any(c["type"] == "ScaledToZero" for c in world.status()["conditions"])
