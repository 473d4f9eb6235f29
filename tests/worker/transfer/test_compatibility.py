"""Tests of the compatibility hash, which is equal only if KV may move."""

from __future__ import annotations

import dataclasses

import pytest

from disagg_worker.transfer.compatibility import compat_hash
from disagg_worker.values.layouts import KvLayout

LAYOUT = KvLayout(layers=3, kv_heads=2, head_dim=4, block_size_tokens=4, dtype="float32", itemsize_bytes=4)


@pytest.mark.parametrize(
    "change",
    [
        {"layers": 4},
        {"kv_heads": 1},
        {"head_dim": 8},
        {"block_size_tokens": 8},
        {"dtype": "bfloat16"},
        {"itemsize_bytes": 2},
    ],
)
def test_any_difference_in_layout_or_model_shows(change: dict[str, object]) -> None:
    assert compat_hash("m", LAYOUT) == compat_hash("m", dataclasses.replace(LAYOUT))
    assert compat_hash("m", LAYOUT) != compat_hash("m", dataclasses.replace(LAYOUT, **change))  # type: ignore[arg-type]
    assert compat_hash("m", LAYOUT) != compat_hash("n", LAYOUT)
