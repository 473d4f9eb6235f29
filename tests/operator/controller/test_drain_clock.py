"""The end of a drain follows the monotonic clock of the operator that began it."""

from __future__ import annotations

import pytest
from tests.operator.controller.test_drainer import Drained


@pytest.mark.parametrize("jump_s", [3600, -3600])
async def test_a_wall_clock_that_jumps_neither_ends_a_drain_nor_prolongs_it(jump_s: int) -> None:
    world = Drained(decode={"replicas": 2, "drain": {"timeoutSeconds": 60}})
    await world.roll()
    world.load(**dict.fromkeys(world.names("decode"), 1))
    world.kube.scale("chat-decode", 1)
    await world.roll()
    (victim,) = world.marked()
    mark = dict(world.kube.find("Pod", victim)["metadata"]["annotations"])
    world.later(jump_s)
    world.clock_s -= jump_s  # no time has passed
    await world.roll()
    assert world.replicas("decode") == (1, 2)
    assert world.kube.find("Pod", victim)["metadata"]["annotations"] == mark
    world.later(59)
    await world.roll()
    assert world.replicas("decode") == (1, 2)
    world.later(2)
    await world.run()
    assert world.replicas("decode") == (1, 1)
