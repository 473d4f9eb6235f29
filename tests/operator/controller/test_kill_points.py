"""Tests that a reconciler killed at any write reaches the same fixed point in its next run."""

from __future__ import annotations

from typing import Any

import pytest
from tests.operator.controller.world import World

from disagg_operator.desired import Images
from disagg_operator.kube.errors import KubeError


async def test_killed_at_any_write_the_next_run_ends_in_the_same_state() -> None:
    whole = World()
    await whole.settle()
    for killed_at in range(1, whole.kube.writes + 1):
        world = World()
        world.kube.fail_at_write = killed_at
        with pytest.raises(KubeError):
            await world.settle()
        world.kube.fail_at_write = None
        world.restart()
        await world.settle()
        assert world.snapshot() == whole.snapshot(), f"killed at write {killed_at}"


CHANGES: list[Any] = [
    pytest.param({}, False, id="of nothing"),
    pytest.param({"decode": {"replicas": 5}}, False, id="of a size"),
    pytest.param({"engine": {"dtype": "float32"}}, False, id="of the pods"),
    pytest.param({}, True, id="of the runtime"),
]


def changed(world: World, edit: dict[str, Any], upgrade: bool) -> None:
    """Change the resource, and let the operator be of a release that moves all to its images."""
    world.edit(**edit)
    if upgrade:
        world.images, world.runtime_updates = Images(worker="w:2", router="r:2"), 10
        world.restart()


@pytest.mark.parametrize(("edit", "upgrade"), CHANGES)
@pytest.mark.parametrize("lost", [pytest.param(False, id="refused"), pytest.param(True, id="not answered")])
async def test_whichever_write_fails_the_same_operator_ends_in_the_same_state(
    edit: dict[str, Any], upgrade: bool, lost: bool
) -> None:
    whole = World()
    await whole.settle()
    first = whole.kube.writes
    changed(whole, edit, upgrade)
    await whole.settle()
    for failing in range(first + 1 if edit or upgrade else 1, whole.kube.writes + 1):
        world = World()
        if failing > first:
            await world.settle()
            changed(world, edit, upgrade)
        world.kube.lose_answer_at, world.kube.fail_at_write = (failing, None) if lost else (None, failing)
        with pytest.raises(KubeError):
            await world.settle()
        world.kube.lose_answer_at = world.kube.fail_at_write = None
        await world.settle()
        assert world.snapshot() == whole.snapshot(), f"write {failing} failed"


@pytest.mark.long
@pytest.mark.parametrize(
    "edit",
    [
        pytest.param({}, id="none"),
        pytest.param({"engine": {"env": [{"name": "A", "value": "b"}]}}, id="of the pods"),
        pytest.param({"security": {"networkPolicy": False}, "decode": {"replicas": 3}}, id="of what there is"),
    ],
)
async def test_killed_at_any_two_writes_before_and_after_an_edit_the_end_is_the_same(edit: dict[str, Any]) -> None:
    async def killed(world: World, at: int) -> bool:
        """Run until the operator dies at this write, and start another; False when there are fewer
        writes.
        """
        world.kube.fail_at_write = world.kube.writes + at
        try:
            await world.settle()
        except KubeError:
            return True
        finally:
            world.kube.fail_at_write = None
            world.restart()
        return False

    whole = World()
    await whole.settle()
    whole.edit(**edit)
    await whole.settle()
    for first in range(1, whole.kube.writes + 1):
        second, more = 1, True
        while more:
            world = World()
            before = await killed(world, first)
            world.edit(**edit)
            more = await killed(world, second)
            await world.settle()
            assert world.snapshot() == whole.snapshot(), f"killed at write {first} ({before}), and at {second} after it"
            second += 1
