"""Heaps for compiled code, in two arrays: the keys, and the numbers that they stand for."""

from __future__ import annotations

from typing import Any

from disagg_operator.simulation.compiled import njit


@njit
def heap_push(keys: Any, values: Any, size: int, key: float, value: int) -> None:
    """Add an entry to a heap of `size` entries."""
    i = size
    while i > 0:
        parent = (i - 1) >> 1
        if keys[parent] <= key:
            break
        keys[i], values[i] = keys[parent], values[parent]
        i = parent
    keys[i], values[i] = key, value


@njit
def heap_pop(keys: Any, values: Any, size: int) -> None:
    """Remove the first entry, which has the least key, from a heap of `size` entries."""
    key, value = keys[size - 1], values[size - 1]
    n, i = size - 1, 0
    while True:
        child = 2 * i + 1
        if child >= n:
            break
        if child + 1 < n and keys[child + 1] < keys[child]:
            child += 1
        if keys[child] >= key:
            break
        keys[i], values[i] = keys[child], values[child]
        i = child
    keys[i], values[i] = key, value
