"""A term begins with what somebody has edited, whatever else there is."""

from __future__ import annotations

from typing import Any

from disagg_operator.controller.first_lanes import first_lanes
from disagg_operator.controller.work_queue import Lane, QueueState


def resource(name: str, generation: int = 1, seen: int | None = 1) -> dict[str, Any]:
    status = {} if seen is None else {"observedGeneration": seen}
    return {"metadata": {"name": name, "namespace": "n", "generation": generation}, "status": status}


def test_an_edit_is_told_by_its_generation_and_a_new_resource_by_its_lack_of_a_status() -> None:
    lanes = first_lanes(
        [resource("same", 4, 4), resource("edited", 5, 4), resource("new", 1, None), {"metadata": {"name": "bare"}}]
    )
    assert lanes == {Lane.EDIT: {("n", "edited")}, Lane.NEW: {("n", "new"), ("", "bare")}, Lane.RESYNC: {("n", "same")}}
    assert [*lanes] == sorted(lanes)


def test_one_edited_resource_goes_before_three_hundred_unchanged_and_three_hundred_new_ones() -> None:
    queue = QueueState(max_resync=2)
    every = [resource(f"a{n:03}") for n in range(300)] + [resource(f"b{n:03}", 1, None) for n in range(300)]
    for lane, keys in first_lanes([*every, resource("z-edited", 2, 1)]).items():
        for key in sorted(keys):
            queue.add(key, 0.0, urgent=True, lane=lane)
    assert queue.pop(0.0) == ("n", "z-edited")


def test_it_also_overtakes_those_that_wait_already() -> None:
    queue = QueueState(max_resync=2)
    for n in range(300):
        queue.add(("n", f"a{n:03}"), 0.0, lane=Lane.RESYNC)
    queue.add(("n", "z-edited"), 0.0, lane=Lane.RESYNC)
    running = [queue.pop(0.0), queue.pop(0.0)]
    queue.add(("n", "z-edited"), 0.0, urgent=True, lane=Lane.EDIT)
    assert queue.pop(0.0) == ("n", "z-edited")
    assert ("n", "z-edited") not in running
