"""Tests of the reading of bodies, without a server."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from disagg_router.errors import ApiError
from disagg_router.openai.request_body import Bodies


def request(*pieces: bytes | None, length: str | None = None) -> Request:
    """Return a request whose body comes in pieces; with None the client leaves."""
    left: list[Message] = [_message(i, pieces) for i in range(len(pieces))]

    async def receive() -> Message:
        return left.pop(0)

    headers = [] if length is None else [(b"content-length", length.encode())]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def _message(number: int, pieces: Sequence[bytes | None]) -> Message:
    piece = pieces[number]
    if piece is None:
        return {"type": "http.disconnect"}
    return {"type": "http.request", "body": piece, "more_body": number + 1 < len(pieces)}


async def test_the_bytes_count_until_the_block_ends() -> None:
    bodies = Bodies(10, 15)
    async with bodies.read(request(b"abc", b"defg")) as body:
        assert (body, bodies.held_bytes) == (b"abcdefg", 7)
        with pytest.raises(ApiError) as caught:
            async with bodies.read(request(b"123456", b"789")):
                pass
        assert (caught.value.status, caught.value.retry_after_s) == (503, 1)
        assert bodies.held_bytes == 7
    assert bodies.held_bytes == 0


@pytest.mark.parametrize("length", [None, "11", "99999999999", "9" * 30, "x", "-1"])
async def test_a_body_that_is_too_long_is_refused_whatever_was_announced(length: str | None) -> None:
    bodies = Bodies(10, 100)
    with pytest.raises(ApiError) as caught:
        async with bodies.read(request(b"123456", b"78901", length=length)):
            pass
    assert (caught.value.status, bodies.held_bytes) == (413, 0)


async def test_a_client_that_leaves_holds_nothing() -> None:
    bodies = Bodies(10, 100)
    with pytest.raises(ClientDisconnect):
        async with bodies.read(request(b"123", None)):
            pass
    assert bodies.held_bytes == 0


async def test_a_failure_of_the_block_is_no_failure_of_the_body() -> None:
    bodies = Bodies(10, 100)
    with pytest.raises(TimeoutError):
        async with bodies.read(request(b"123")):
            raise TimeoutError
    assert bodies.held_bytes == 0
