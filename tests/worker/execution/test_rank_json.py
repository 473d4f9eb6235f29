"""Another rank's message is an object, or is refused."""

from __future__ import annotations

import pytest

from disagg_worker.execution.rank_json import loads


def test_an_object_is_read() -> None:
    assert loads(b'{"rank": 1, "ready": true}') == {"rank": 1, "ready": True}


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"1", b"null", b'"x"', b"\xff"])
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError):
        loads(content)
