"""Tests of the errors of calls to the API server: each status becomes the right kind of error."""

from __future__ import annotations

import pytest

from disagg_operator.kube.errors import (
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KubeError,
    NotFound,
    Retry,
    Terminating,
    from_status,
)

ENDING = 'deployments "a" is forbidden: unable to create new content in namespace b because it is being terminated'


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (404, "not found", NotFound),
        (409, "changed", Conflict),
        (410, "expired", Gone),
        (401, "who?", Forbidden),
        (403, "no", Forbidden),
        (403, ENDING, Terminating),
        (429, "slower", Retry),
        (500, "etcd", Retry),
        (503, "starting", Retry),
        (504, "slow", Retry),
        (500, "failed to create typed patch object (n/a; apps/v1)", Invalid),
        (300, "moved", Invalid),
        (400, "bad", Invalid),
        (415, "media", Invalid),
        (422, "invalid", Invalid),
    ],
)
def test_the_status_tells_what_to_do(code: int, message: str, kind: type[KubeError]) -> None:
    error = from_status(code, "GET /api/v1/pods", message, None)
    assert type(error) is kind
    assert str(error) == f"GET /api/v1/pods: {code} {message}"


def test_a_server_says_when_to_try_again() -> None:
    error = from_status(429, "GET /x", "slower", 2.5)
    assert isinstance(error, Retry)
    assert error.after_s == 2.5


def test_a_message_is_cut() -> None:
    assert len(str(from_status(400, "GET /x", "y" * 100_000, None))) < 1100
