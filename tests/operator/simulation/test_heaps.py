"""Heaps give back what was put in, least first."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from disagg_operator.simulation.heaps import heap_pop, heap_push


@settings(deadline=None)
@given(st.lists(st.one_of(st.floats(0, 100), st.none()), max_size=60))
def test_the_first_entry_is_always_the_least(steps: list[float | None]) -> None:
    """A number is pushed, None pops."""
    keys, values, held = np.zeros(60), np.zeros(60, np.int32), dict[int, float]()
    for i, key in enumerate(steps):
        if key is not None:
            heap_push(keys, values, len(held), key, i)
            held[i] = key
        elif held:
            assert held.pop(int(values[0])) == keys[0]
            heap_pop(keys, values, len(held) + 1)
        if held:
            assert keys[0] == min(held.values())
            assert sorted(values[: len(held)].tolist()) == sorted(held)
