"""Canaries through the reconciler: what the routers are told, the verdicts, and kills."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.controller.rolling import A_MODEL, ROLES, Rolling

from disagg_operator.kube.errors import KubeError
from disagg_operator.kube.resources import annotations_of, labels_of
from disagg_operator.rollout.canary_record import PROMOTE_ANNOTATION
from disagg_wire.labels import LABEL_REVISION

SAME_NAME = {**A_MODEL, "name": "stdlib-llama"}
CANARY: dict[str, Any] = {"canary": {"weight": 10, "minRequests": 100, "maxDurationSeconds": 600}}
GOOD, BAD, OLD = (100, 99), (100, 80), (900, 891)


async def tried(
    size: int = 4, rollout: dict[str, Any] | None = None, kind: type[Rolling] = Rolling, **spec: Any
) -> Rolling:
    """Return a deployment whose new revision is tried, with one pair."""
    pools = {role: {"replicas": size} for role in ROLES}
    world = kind(**{**pools, "rollout": {**CANARY, **(rollout or {})}, **spec})
    await world.roll()
    world.least_pairs = 99
    world.edit(model=SAME_NAME)
    await world.roll()
    return world


class Draining(Rolling):
    """A deployment whose pods of one revision take long to end."""

    drains: tuple[str, ...] = ()

    def kubelets(self) -> None:
        pods = [pod for key in self.workloads() if key[1] in self.drains for pod in self.pods(key)]
        super().kubelets()
        for pod in pods:
            pod["metadata"]["deletionTimestamp"] = self.now
            self.kube.put(pod)


class Alike(Rolling):
    """A deployment all of whose workers can exchange KV with each other."""

    def compat(self, key: tuple[str, str]) -> str:
        return "c"


def promote(world: Rolling) -> None:
    found = world.kube.find("DisaggDeployment", "chat")
    found["metadata"].setdefault("annotations", {})[PROMOTE_ANNOTATION] = world.status()["revision"]["update"]
    world.kube.put(found)


def news(world: Rolling) -> tuple[list[int], list[int]]:
    """Return the replicas of the old and of the new workers, by role."""
    old = [world.replicas_of(role).get(f"chat-{role}", 0) for role in ROLES]
    return old, [sum(world.replicas_of(role).values()) - n for role, n in zip(ROLES, old, strict=True)]


async def test_one_new_pair_is_tried_beside_the_old_ones_and_the_routers_are_told() -> None:
    world = await tried()
    assert news(world) == ([4, 4], [1, 1])
    words = world.words()
    assert {role: (word.percent, word.revision) for role, word in words.items()} == {
        role: (10, world.revision_of(role)) for role in ROLES
    }
    assert (words["decode"].ttft_s, words["decode"].tpot_s) == (1.0, 0.06)
    condition = world.condition("Progressing")
    assert (condition["status"], condition["reason"]) == ("True", "Canary")
    assert condition["message"].startswith("canary: 10 % of the requests, 0 of 100: revision")
    world.serve((57, 57), (600, 598))
    await world.roll()
    assert "57 of 100, attainment 100 % new, 99.6 % old" in world.condition("Progressing")["message"]
    assert news(world) == ([4, 4], [1, 1])


async def test_the_objectives_of_the_analysis_are_those_that_the_routers_are_told() -> None:
    analysis = {"ttftSeconds": {"p99": 0.25}, "tpotSeconds": {"p99": 0.02}}
    world = await tried(rollout={"canary": {"weight": 30, "analysis": analysis}})
    assert world.words()["prefill"].text().endswith(".t250000.p20000")
    assert news(world) == ([3, 3], [2, 2])  # with a surge of one


async def test_a_revision_that_is_no_worse_is_promoted_and_the_rollout_goes_on() -> None:
    world = await tried()
    world.serve(GOOD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    assert world.words() == {}
    assert news(world) == ([0, 0], [4, 4])
    assert world.least_pairs >= 1
    # It goes back without another trial.
    world.edit(model={"uri": "file:///models/stdlib-llama"})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_a_revision_that_is_worse_goes_back_and_is_tried_again_after_an_edit() -> None:
    world = await tried()
    pods = [p["metadata"]["name"] for key in world.workloads() if "-" not in key for p in world.pods(key)]
    current, old = world.status()["revision"]["current"], world.replicas_of("prefill")
    assert old["chat-prefill"] == 4
    world.serve(BAD, OLD)
    await world.run()
    assert await world.run() is not None
    assert {word.text().split(".")[0] for word in world.words().values()} == {"0"}
    await world.roll()
    condition = world.condition("Progressing")
    assert (condition["status"], condition["reason"]) == ("False", "CanaryFailed")
    assert "100 of 100, attainment 80 % new, 99 % old" in condition["message"]
    assert news(world) == ([4, 4], [0, 0])
    assert world.words() == {}
    assert world.status()["revision"]["current"] == current
    assert world.condition("Available")["status"] == "True"
    assert "CanaryFailed" in {e["reason"] for e in world.kube.events}
    first = [p["metadata"]["name"] for key in world.workloads() for p in world.pods(key)]
    assert set(first) <= set(pods)
    world.restart()
    world.kubelets()
    await world.roll()
    assert world.condition("Progressing")["reason"] == "CanaryFailed"
    world.later(3600)
    world.edit(router={"replicas": 2})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "Canary"
    assert "0 of 100" in world.condition("Progressing")["message"]
    assert news(world) == ([4, 4], [1, 1])


@pytest.mark.parametrize("how", ["resume", "undo", "longer"])
async def test_too_few_requests_wait_for_a_person(how: str) -> None:
    world = await tried()
    world.serve((57, 57), (600, 598))
    world.later(601)
    await world.roll()
    condition = world.condition("Progressing")
    assert (condition["status"], condition["reason"]) == ("Unknown", "CanaryInconclusive")
    assert "57 of 100" in condition["message"]
    assert "disagg rollout resume" in condition["message"]
    world.serve((57, 57), (600, 598))  # requests that come later decide nothing
    world.later(50_000)
    world.restart()
    world.kubelets()
    await world.roll()
    assert world.condition("Progressing")["reason"] == "CanaryInconclusive"
    assert news(world) == ([4, 4], [1, 1])
    assert world.words()["decode"].percent == 10
    if how == "resume":
        promote(world)
    elif how == "undo":
        world.edit(model={"uri": "file:///models/stdlib-llama"})
    else:
        world.edit(rollout={"canary": {"minRequests": 100, "maxDurationSeconds": 86_400}})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    assert news(world) == (([4, 4], [0, 0]) if how == "undo" else ([0, 0], [4, 4]))


async def test_an_edit_in_the_middle_is_tried_anew_and_what_was_given_up_gets_nothing() -> None:
    world = await tried()
    second = world.words()["prefill"].revision
    world.serve((90, 0), (90, 90))
    world.edit(model={**SAME_NAME, "uri": "file:///models/third"})
    await world.run()
    word = world.words()["prefill"]
    assert (word.percent, word.left) == (10, (second,))
    assert word.revision not in (second, "")
    await world.roll()
    assert world.condition("Progressing")["reason"] == "Canary"
    assert "0 of 100" in world.condition("Progressing")["message"]
    assert news(world) == ([4, 4], [1, 1])
    assert len(world.workloads()) == 4
    world.serve(GOOD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


@pytest.mark.parametrize("inconclusive", [False, True])
async def test_a_revision_that_was_left_in_the_middle_is_tried_from_the_start_when_it_is_declared_again(
    inconclusive: bool,
) -> None:
    world = await tried()
    world.serve((57, 57), (600, 598))
    if inconclusive:
        world.later(601)
        await world.roll()
    world.edit(model={**SAME_NAME, "uri": "file:///models/third"})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "Canary"
    world.later(700)
    world.edit(model=SAME_NAME)
    await world.roll()
    condition = world.condition("Progressing")
    assert condition["reason"] == "Canary"
    assert "0 of 100" in condition["message"]
    assert news(world) == ([4, 4], [1, 1])
    world.later(500)
    world.serve(GOOD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


@pytest.mark.parametrize("failed", [False, True])
async def test_a_revision_that_fails_does_not_go_back_to_one_that_was_given_up_and_still_drains(failed: bool) -> None:
    world = await tried(kind=Draining, rollout={"maxSurge": 3})
    assert isinstance(world, Draining)
    world.drains = tuple(world.revision_of(role) for role in ROLES)
    if failed:
        world.serve(BAD, OLD)
        await world.roll()
        assert world.condition("Progressing")["reason"] == "CanaryFailed"
    world.edit(model={**SAME_NAME, "uri": "file:///models/third"})
    await world.roll()
    assert len(world.workloads()) == 6
    world.serve(BAD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "CanaryFailed"
    first = world.revisions()[0].name
    assert f"so that {first} is restored" in world.condition("Progressing")["message"]
    assert [world.replicas_of(role)[f"chat-{role}"] for role in ROLES] == [4, 4]


async def test_a_revert_in_the_middle_takes_the_requests_from_the_new_workers_at_once() -> None:
    world = await tried()
    second = world.words()["decode"].revision
    world.edit(model={"uri": "file:///models/stdlib-llama"})
    await world.run()
    word = world.words()["decode"]
    assert (word.percent, word.revision, word.left) == (0, "", (second,))
    await world.roll()
    assert world.words() == {}
    assert news(world) == ([4, 4], [0, 0])


async def test_the_share_is_kept_while_the_pools_scale() -> None:
    world = await tried(rollout={"canary": {"weight": 50}})
    assert news(world) == ([3, 3], [2, 2])
    for size, new in ((10, 5), (2, 1)):
        for role in ROLES:
            world.kube.scale(f"chat-{role}", size)
        await world.roll()
        assert news(world)[1] == [new, new]
        assert min(news(world)[0]) >= size - new
        assert world.condition("Progressing")["reason"] == "Canary"


async def test_a_full_cluster_gives_a_pair_for_the_canary_and_one_pair_cannot_be_tried() -> None:
    world = await tried(rollout={"maxSurge": 0})
    assert news(world) == ([3, 3], [1, 1])
    assert world.condition("Progressing")["reason"] == "Canary"
    world = Rolling(**{role: {"replicas": 1} for role in ROLES}, rollout={**CANARY, "maxSurge": 0})
    await world.roll()
    world.edit(model=SAME_NAME)
    await world.run()
    condition = world.condition("Progressing")
    assert condition["reason"] == "ExchangingPools"
    assert condition["message"].startswith("no canary, as an old and a new pair do not fit")
    world.kubelets()
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_another_name_is_no_canary() -> None:
    world = Rolling(rollout=CANARY)
    await world.roll()
    world.edit(model={**A_MODEL, "name": "another"})
    await world.run()
    assert "no canary: the model stdlib-llama was served before" in world.condition("Progressing")["message"]
    assert world.words() == {}
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_a_paused_canary_decides_nothing_and_its_deadline_waits() -> None:
    world = await tried(rollout={"progressDeadlineSeconds": 300, "autoRollback": True})
    world.edit(rollout={**CANARY, "progressDeadlineSeconds": 300, "autoRollback": True, "paused": True})
    world.serve(BAD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutPaused"
    for _ in range(20):
        world.later(250)
        await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutPaused"
    world.edit(rollout={**CANARY, "progressDeadlineSeconds": 300})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "CanaryFailed"


async def test_a_canary_that_is_longer_than_the_deadline_does_not_stall() -> None:
    world = await tried(rollout={"progressDeadlineSeconds": 300, "autoRollback": True})
    for _ in range(3):
        world.later(190)
        await world.roll()
        assert world.condition("Progressing")["reason"] == "Canary"
    world.serve(GOOD, OLD)
    await world.run()
    await world.run()
    assert world.condition("Progressing")["reason"] == "RollingOut"
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"


async def test_without_its_field_the_rollout_goes_on_and_counts_as_good() -> None:
    world = await tried()
    world.edit(rollout={})
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    assert world.revisions()[-1].canary is not None


@pytest.mark.parametrize(
    ("verdict", "every"),
    [("revert", 5), *(pytest.param(v, 1, marks=pytest.mark.long) for v in ("promote", "revert", "inconclusive"))],
)
async def test_an_operator_that_is_killed_at_a_write_of_a_canary_comes_to_the_same_verdict(
    verdict: str, every: int
) -> None:
    for killed_at in range(1, 60, every):
        world = Rolling(**{role: {"replicas": 2} for role in ROLES}, rollout=CANARY)
        await world.roll()
        world.least_pairs = 99
        world.edit(model=SAME_NAME)
        world.kube.fail_at_write = world.kube.writes + killed_at
        died = await _to_the_end(world, verdict)
        world.kube.fail_at_write = None
        if died:
            world.restart()
            world.kubelets()
            await _to_the_end(world, verdict)
        reason = {"promote": "RolloutComplete", "revert": "CanaryFailed", "inconclusive": "CanaryInconclusive"}[verdict]
        assert world.condition("Progressing")["reason"] == reason, f"killed at write {killed_at}"
        expected = {"promote": ([0, 0], [2, 2]), "revert": ([2, 2], [0, 0]), "inconclusive": ([2, 2], [1, 1])}[verdict]
        assert news(world) == expected, f"killed at write {killed_at}"
        assert world.least_pairs >= 1
        if not died:
            return
    raise AssertionError("a canary has more writes than that")


async def _to_the_end(world: Rolling, verdict: str) -> bool:
    """Roll and let requests end; returns whether the operator was killed."""
    try:
        await world.roll()
        if world.condition("Progressing")["reason"] == "Canary":
            new = {"promote": GOOD, "revert": BAD, "inconclusive": (5, 5)}[verdict]
            world.serve(new, OLD)
            world.later(700 if verdict == "inconclusive" else 10)
        await world.roll()
    except KubeError:
        return True
    return False


async def test_workers_of_one_pool_alone_are_tried_with_the_other_pool_as_it_is() -> None:
    world = Alike(**{role: {"replicas": 2} for role in ROLES}, rollout=CANARY)
    await world.roll()
    world.edit(prefill={"replicas": 2, "podTemplate": {"metadata": {"annotations": {"a": "b"}}}})
    await world.roll()
    words = world.words()
    assert set(words) == {"prefill"}
    assert world.condition("Progressing")["reason"] == "Canary"
    new = {labels_of(o)[LABEL_REVISION] for o in world.workloads().values()}
    assert words["prefill"].revision in new
    world.serve(GOOD, OLD)
    await world.roll()
    assert world.condition("Progressing")["reason"] == "RolloutComplete"
    assert all("disagg.dev/served" in annotations_of(o) for o in world.workloads().values())
