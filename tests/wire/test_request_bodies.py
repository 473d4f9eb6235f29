"""Tests of the reading of bodies, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from disagg_wire.request_bodies import BodyLimits, Refusal, RequestBodies


class Refused(Exception):
    """The error of a server."""

    def __init__(self, refusal: Refusal) -> None:
        self.refusal = refusal


def bodies(each: int, together: int, seconds: float = 60.0) -> RequestBodies:
    return RequestBodies(BodyLimits(each, together, seconds), lambda refusal, limits: Refused(refusal))


async def body(*pieces: bytes | Exception) -> AsyncIterator[bytes]:
    """Yield the pieces, as they come; what is an exception is raised."""
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def refusal_of(pending: RequestBodies, pieces: AsyncIterator[bytes], announced: str = "") -> Refusal:
    with pytest.raises(Refused) as caught:
        async with pending.read(pieces, announced):
            pass
    return caught.value.refusal


async def test_the_bytes_count_until_the_block_ends() -> None:
    pending = bodies(10, 15)
    async with pending.read(body(b"abc", b"defg")) as first:
        assert (first, pending.held_bytes) == (b"abcdefg", 7)
        assert await refusal_of(pending, body(b"123456", b"789")) is Refusal.CROWDED
        assert pending.held_bytes == 7
    assert pending.held_bytes == 0


async def test_a_body_that_may_never_be_is_not_told_to_come_again() -> None:
    assert await refusal_of(bodies(10, 5), body(b"12345678901")) is Refusal.TOO_LARGE


@pytest.mark.parametrize("announced", ["", "11", "99999999999", "9" * 30, "x", "-1"])
async def test_a_body_that_is_too_long_is_refused_whatever_was_announced(announced: str) -> None:
    pending = bodies(10, 100)
    assert await refusal_of(pending, body(b"123456", b"78901"), announced) is Refusal.TOO_LARGE
    assert pending.held_bytes == 0


async def test_of_a_body_that_is_announced_too_long_nothing_is_read() -> None:
    assert await refusal_of(bodies(10, 100), body(AssertionError()), "11") is Refusal.TOO_LARGE


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    pending = bodies(10, 100, seconds=0.01)

    async def slow() -> AsyncIterator[bytes]:
        yield b"123"
        await asyncio.Event().wait()

    assert await refusal_of(pending, slow()) is Refusal.LATE
    assert pending.held_bytes == 0


async def test_a_client_that_leaves_holds_nothing() -> None:
    pending = bodies(10, 100)
    with pytest.raises(ConnectionError):
        async with pending.read(body(b"123", ConnectionError())):
            pass
    assert pending.held_bytes == 0


async def test_a_failure_of_the_block_is_no_failure_of_the_body() -> None:
    pending = bodies(10, 100)
    with pytest.raises(TimeoutError):
        async with pending.read(body(b"123")):
            raise TimeoutError
    assert pending.held_bytes == 0
