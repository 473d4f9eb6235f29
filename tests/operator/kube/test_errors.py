"""Tests of the errors of calls to the API server: each status becomes the right kind of error."""

from __future__ import annotations

import pytest

from disagg_operator.kube.errors import (
    Conflict,
    Denied,
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
        (500, "failed to convert new object (n/a; apps/v1) to proper version: quantities must match", Invalid),
        (500, 'Internal error occurred: failed calling webhook "w"', Retry),
        (403, 'deployments.apps "d" is forbidden: User "u" cannot patch resource', Forbidden),
        (403, 'roles "r" is forbidden: user "u" (groups=[]) is attempting to grant RBAC permissions', Forbidden),
        (403, 'services "d" is forbidden: exceeded quota: q, requested: services=1', Denied),
        (403, 'admission webhook "w" denied the request: no', Denied),
        (400, 'admission webhook "w" denied the request: no', Denied),
        (422, "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: no", Denied),
        *(
            (code, 'admission webhook "w" denied the request: no', Denied)
            for code in (401, 404, 409, 410, 429, 500, 503)
        ),
        (401, "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: no", Denied),
        (413, "deployments.apps \"d\" is forbidden: ValidatingAdmissionPolicy 'p' denied request: no", Denied),
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


@pytest.mark.parametrize(
    ("message", "causes", "fields"),
    [
        ("invalid", [("spec.a", "must be b")], (("spec.a", "must be b"),)),
        (
            "failed to create typed patch object (default/d; apps/v1, Kind=Deployment): "
            '.spec.containers[name="main"].env: duplicate entries for key [name="A"]',
            [],
            (('spec.containers[name="main"].env', 'duplicate entries for key [name="A"]'),),
        ),
        ("failed to convert new object (default/d): quantities must match", [], ()),
    ],
)
def test_what_is_invalid_names_its_fields(
    message: str, causes: list[tuple[str, str]], fields: tuple[tuple[str, str], ...]
) -> None:
    error = from_status(500 if "failed" in message else 422, "PATCH /x", message, None, causes)
    assert isinstance(error, Invalid)
    assert error.fields == fields


def test_what_is_denied_names_its_fields_if_the_webhook_does() -> None:
    error = from_status(400, "PATCH /x", 'admission webhook "w" denied the request: no', None, [("spec.a", "b")])
    assert isinstance(error, Denied)
    assert error.fields == (("spec.a", "b"),)
