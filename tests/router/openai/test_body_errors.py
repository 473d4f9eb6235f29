"""Tests of what clients are answered whose bodies are not read to their end."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from disagg_router.errors import ApiError
from disagg_router.openai.body_errors import error_of, limits_of
from disagg_router.settings import Settings
from disagg_wire.request_bodies import BodyLimits, Refusal, RequestBodies


@pytest.mark.parametrize(
    ("refusal", "status", "code", "retry_after_s"),
    [
        (Refusal.TOO_LARGE, 413, "body_too_large", None),
        (Refusal.CROWDED, 503, "overloaded", 1),
        (Refusal.LATE, 408, "body_timeout", None),
    ],
)
def test_each_refusal_has_an_answer(refusal: Refusal, status: int, code: str, retry_after_s: int | None) -> None:
    error = error_of(refusal, BodyLimits(10, 100, 60.0))
    assert isinstance(error, ApiError)
    assert (error.status, error.code, error.retry_after_s) == (status, code, retry_after_s)


def test_the_limits_are_those_of_the_settings() -> None:
    settings = Settings(
        model_name="m", cluster_key_file=Path("k"), membership="file:///m", max_body_bytes=2048, max_bodies_bytes=4096
    )
    assert limits_of(settings) == BodyLimits(2048, 4096, 60.0)


async def test_a_client_that_leaves_holds_nothing() -> None:
    left: list[Message] = [
        {"type": "http.request", "body": b"123", "more_body": True},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        return left.pop(0)

    pending = RequestBodies(BodyLimits(10, 100, 60.0), error_of)
    with pytest.raises(ClientDisconnect):
        async with pending.read(Request({"type": "http", "method": "POST", "headers": []}, receive).stream()):
            pass
    assert pending.held_bytes == 0
