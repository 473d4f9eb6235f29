"""What a worker says of how much it has loaded."""

from __future__ import annotations

from typing import Any

import pytest

from disagg_wire.load_progress import loaded_bytes, loading_json


def test_what_is_written_is_read() -> None:
    assert loaded_bytes({"loading": loading_json(5, 9)}) == 5
    assert loading_json(5, 9) == {"read_bytes": 5, "total_bytes": 9}


@pytest.mark.parametrize("loading", [None, "x", {}, {"read_bytes": "5"}, {"read_bytes": True}, {"read_bytes": -1}])
def test_anything_else_is_nothing(loading: Any) -> None:
    assert loaded_bytes({"loading": loading}) == 0
    assert loaded_bytes({}) == 0
