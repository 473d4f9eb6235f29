"""Rollouts through the reconciler: workloads by revision, history, rollback, and what was there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from tests.operator.controller.rolling import A_MODEL, ROLES, Rolling

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import annotations_of, labels_of
from disagg_operator.rollout.looking import SERVED_ANNOTATION
from disagg_wire.labels import LABEL_REVISION


async def settled(**spec: Any) -> Rolling:
    world = Rolling(**spec)
    await world.roll()
    world.least_pairs = 99
    return world


async def test_the_first_revision_has_the_name_of_its_pool_and_is_recorded() -> None:
    world = await settled()
    assert world.replicas_of("prefill") == {"chat-prefill": 2}
    (revision,) = world.revisions()
    assert (revision.number, revision.name) == (1, world.status()["revision"]["current"])
    assert revision.spec["model"] == {"uri": "file:///models/stdlib-llama"}
    assert "replicas" not in revision.spec["prefill"]
    assert all(SERVED_ANNOTATION in annotations_of(o) for o in world.workloads().values())
    assert "rollout" not in world.status()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_an_edit_rolls_both_pools_in_workloads_of_their_own_and_a_pair_serves_throughout() -> None:
    world = await settled()
    old = {key: copy.deepcopy(o) for key, o in world.workloads().items()}
    world.edit(model=A_MODEL)
    await world.run()
    for key, before in old.items():
        assert world.workloads()[key]["spec"]["template"] == before["spec"]["template"]
    await world.roll()
    for role in ROLES:
        assert world.replicas_of(role) == {f"chat-{role}-{world.revision_of(role)}": 2}
        (deployment,) = [o for key, o in world.workloads().items() if key[0] == role]
        assert deployment["spec"]["selector"]["matchLabels"][LABEL_REVISION] == world.revision_of(role)
    assert world.least_pairs >= 1
    assert [r.number for r in world.revisions()] == [1, 2]
    assert world.condition("Ready")["status"] == "True"


async def test_a_deployment_of_a_release_without_history_is_taken_over_and_its_pods_stay() -> None:
    world = await settled()
    for key in [k for k in world.kube.objects if k[0] == "ControllerRevision"]:
        del world.kube.objects[key]
    for workload in world.workloads().values():
        del workload["metadata"]["annotations"][SERVED_ANNOTATION]
    world.kube.find("DisaggDeployment", "chat")["status"].pop("rollout", None)
    world.restart()
    before = {key: (o["metadata"]["uid"], copy.deepcopy(o["spec"])) for key, o in world.workloads().items()}
    made = world.made
    await world.roll()
    assert {key: (o["metadata"]["uid"], o["spec"]) for key, o in world.workloads().items()} == before
    assert world.made == made
    assert len(world.revisions()) == 1
    # What such a release rendered otherwise is an old revision like any other.
    world.edit(model=A_MODEL)
    await world.roll()
    assert world.least_pairs >= 1


async def test_the_router_follows_the_workers() -> None:
    world = await settled()
    before = copy.deepcopy(world.kube.find("Deployment", "chat-router")["spec"]["template"])
    world.edit(model={**A_MODEL, "name": "new-name"})
    await world.run()
    assert world.kube.find("Deployment", "chat-router")["spec"]["template"] == before
    await world.roll()
    env = world.kube.find("Deployment", "chat-router")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert "new-name" in {e.get("value") for e in env}


async def test_a_revert_in_the_middle_deletes_no_worker_of_the_old_revision() -> None:
    world = await settled(prefill={"replicas": 4}, decode={"replicas": 4})
    first = copy.deepcopy(world.kube.find("DisaggDeployment", "chat")["spec"]["model"])
    pods = {key: [p["metadata"]["name"] for p in world.pods(key)] for key in world.workloads()}
    world.edit(model=A_MODEL)
    for _ in range(2):
        await world.run()
        world.kubelets()
    kept = {key: [p["metadata"]["name"] for p in world.pods(key)] for key in pods}
    world.edit(model=first)
    await world.roll()
    for key, names in kept.items():
        assert set(names) <= {p["metadata"]["name"] for p in world.pods(key)}
    assert world.replicas_of("prefill") == {"chat-prefill": 4}
    assert [r.name for r in world.revisions()][-1] == world.status()["revision"]["current"]


async def _break(world: Rolling) -> None:
    """Roll out a revision whose pods never become ready, as far as it goes."""
    world.edit(model=A_MODEL)
    await world.run()
    world.broken |= {key[1] for key, o in world.workloads().items() if SERVED_ANNOTATION not in annotations_of(o)}
    await world.roll()


async def test_a_rollout_without_progress_is_stalled_after_its_deadline_and_the_old_workers_serve_on() -> None:
    world = await settled(rollout={"progressDeadlineSeconds": 600})
    await _break(world)
    assert world.condition("Progressing")["reason"] == "RollingOut"
    assert world.replicas_of("prefill")["chat-prefill"] == 2
    world.later(601)
    await world.roll()
    progressing, stalled = world.condition("Progressing"), world.condition("Stalled")
    assert (progressing["status"], progressing["reason"]) == ("False", "ProgressDeadlineExceeded")
    assert stalled["status"] == "True"
    assert "prefill 0 of 2 ready, 2 old" in progressing["message"]
    assert world.condition("Available")["status"] == "True"
    assert "RolloutStalled" in {e["reason"] for e in world.kube.events}


@pytest.mark.parametrize("seconds", [3 * 3600, -3 * 3600])
async def test_a_wall_clock_that_jumps_ends_no_rollout(seconds: int) -> None:
    world = await settled(rollout={"progressDeadlineSeconds": 600, "autoRollback": True})
    await _break(world)
    world.later(500)
    await world.roll()
    world.later(seconds)
    world.clock_s -= seconds  # no time has passed
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RollingOut"
    world.later(90)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RollingOut"
    world.later(11)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolledBack"


@pytest.mark.parametrize(
    "stored",
    ["garbled", [], {}, *({"lastProgressTime": text} for text in ("", "yesterday", "2025-01-01T00:00:00", 7, None))],
)
async def test_a_rollout_whose_progress_is_not_readable_gets_a_new_deadline(stored: object) -> None:
    world = await settled(rollout={"progressDeadlineSeconds": 600})
    await _break(world)
    target = world.status()["rollout"]["target"]
    if isinstance(stored, dict) and stored:
        stored = {**world.status()["rollout"], **stored}
    world.kube.find("DisaggDeployment", "chat")["status"]["rollout"] = stored
    world.later(601)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RollingOut"
    found = world.status()["rollout"]
    assert (found["target"], found["lastProgressTime"]) == (target, world.now)
    world.later(601)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "ProgressDeadlineExceeded"


async def test_a_first_revision_that_fails_has_none_to_go_back_to_and_is_only_stalled() -> None:
    world = Rolling(rollout={"progressDeadlineSeconds": 600, "autoRollback": True})
    await world.run()
    world.broken |= {key[1] for key in world.workloads()}
    await world.roll()
    world.later(601)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "ProgressDeadlineExceeded"
    (revision,) = world.revisions()
    assert revision.failed_generation is None
    assert {role: world.replicas_of(role) for role in ROLES} == {role: {f"chat-{role}": 2} for role in ROLES}
    world.broken.clear()
    for role in ROLES:
        for pod in [p for key in world.workloads() if key[0] == role for p in world.pods(key)]:
            world.kube.remove("Pod", pod["metadata"]["name"])
    world.kubelets()
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


@pytest.mark.parametrize("replicas", [1, 3])
async def test_a_router_that_waits_for_the_workers_still_gets_its_number_of_replicas(replicas: int) -> None:
    world = await settled(router={"replicas": 2}, rollout={"progressDeadlineSeconds": 600})
    before = copy.deepcopy(world.kube.find("Deployment", "chat-router")["spec"])
    await _break(world)
    world.edit(router={"replicas": replicas})
    await world.roll()
    assert world.kube.find("Deployment", "chat-router")["spec"] == {**before, "replicas": replicas}
    assert world.replicas_of("prefill")["chat-prefill"] == 2


async def test_a_stalled_rollout_goes_back_by_itself_and_an_edit_tries_again() -> None:
    world = await settled(rollout={"progressDeadlineSeconds": 600, "autoRollback": True})
    current = world.status()["revision"]["current"]
    await _break(world)
    world.later(601)
    assert await world.run() is not None
    world.restart()
    world.kubelets()
    await world.roll()
    assert world.replicas_of("prefill") == {"chat-prefill": 2}
    progressing = world.condition("Progressing")
    assert (progressing["status"], progressing["reason"]) == ("False", "RolledBack")
    assert current in progressing["message"]
    assert world.status()["revision"]["current"] == current
    world.broken.clear()
    world.edit(model={**A_MODEL, "name": "again"})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    assert world.status()["revision"]["current"] != current


async def test_a_paused_rollout_stands_still() -> None:
    world = await settled(rollout={"paused": True})
    world.edit(model=A_MODEL)
    await world.roll()
    assert world.replicas_of("prefill")["chat-prefill"] == 2
    assert len(world.replicas_of("prefill")) == 2
    condition = world.condition("Progressing")
    assert (condition["status"], condition["reason"]) == ("Unknown", "RolloutPaused")
    world.edit(rollout={"paused": False})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_old_revisions_are_forgotten_beyond_the_limit() -> None:
    world = await settled(rollout={"revisionHistoryLimit": 2})
    for number in range(4):
        world.edit(model={"uri": f"file:///models/m{number}"})
        await world.roll()
    assert [r.number for r in world.revisions()] == [3, 4, 5]


async def test_one_pair_without_surge_is_exchanged_and_counted() -> None:
    world = await settled(prefill={"replicas": 1}, decode={"replicas": 1}, rollout={"maxSurge": 0})
    world.edit(model=A_MODEL)
    await world.run()
    assert world.condition("Progressing")["reason"] == "ExchangingPools"
    world.kubelets()
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    text = world.metrics.text().decode()
    assert 'disagg_operator_pool_exchanges_total{disagg_deployment="chat",namespace="default"} 1.0' in text


async def test_a_broken_revision_after_an_exchange_is_followed_by_the_one_before() -> None:
    rules = {"maxSurge": 0, "progressDeadlineSeconds": 600, "autoRollback": True}
    world = await settled(prefill={"replicas": 1}, decode={"replicas": 1}, rollout=rules)
    current = world.status()["revision"]["current"]
    world.edit(model=A_MODEL)
    await world.run()
    assert world.replicas_of("prefill")["chat-prefill"] == 0
    world.kubelets()
    await world.run()
    world.broken |= {key[1] for key, o in world.workloads().items() if SERVED_ANNOTATION not in annotations_of(o)}
    await world.roll()
    world.later(601)
    await world.roll()
    assert world.replicas_of("prefill") == {"chat-prefill": 1}
    assert world.condition("Progressing")["reason"] == "RolledBack"
    assert world.status()["revision"]["current"] == current
    assert world.condition("Available")["status"] == "True"


async def test_a_pool_scales_on_while_it_rolls() -> None:
    world = await settled()
    await _break(world)
    world.kube.scale("chat-decode", 5)
    await world.roll()
    assert world.replicas_of("decode")["chat-decode"] == 5


@pytest.mark.parametrize("loses_status", [False, pytest.param(True, marks=pytest.mark.long)])
async def test_an_operator_that_is_killed_at_any_write_of_a_rollout_ends_it(loses_status: bool) -> None:
    for killed_at in range(1, 40):
        world = await settled()
        world.edit(model=A_MODEL)
        world.kube.fail_at_write = world.kube.writes + killed_at
        died = False
        try:
            await world.roll()
        except KubeError:
            died = True
        world.kube.fail_at_write = None
        if loses_status:
            world.kube.find("DisaggDeployment", "chat").pop("status", None)
        world.restart()
        world.kubelets()
        await world.roll()
        assert {role: list(world.replicas_of(role).values()) for role in ROLES} == {"prefill": [2], "decode": [2]}
        assert {labels_of(o)[LABEL_REVISION] for o in world.workloads().values()} == {
            world.revision_of(role) for role in ROLES
        }
        assert world.least_pairs >= 1, f"killed at write {killed_at}"
        if not died:
            return
    raise AssertionError("a rollout has more writes than that")
