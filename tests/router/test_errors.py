"""Tests that each error tells what the caller must do, in OpenAI's form."""

from __future__ import annotations

import pytest

from disagg_router.errors import ApiError, AttemptFailed, NoRoom
from disagg_wire import codes


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (401, "authentication_error"),
        (404, "not_found_error"),
        (413, "invalid_request_error"),
        (429, "rate_limit_error"),
        (499, "invalid_request_error"),
        (500, "server_error"),
        (503, "server_error"),
        (504, "server_error"),
    ],
)
def test_the_status_gives_the_kind_of_error_that_openai_names(status: int, kind: str) -> None:
    assert ApiError(status, "x").kind == kind


def test_an_answer_names_field_and_code() -> None:
    error = ApiError(400, "n: 0 is too few", code="invalid_value", param="n", retry_after_s=3)
    assert error.body() == {
        "error": {"message": "n: 0 is too few", "type": "invalid_request_error", "param": "n", "code": "invalid_value"}
    }
    assert (error.status, error.retry_after_s) == (400, 3)


@pytest.mark.parametrize(
    ("reason", "status", "code"),
    [
        (codes.PROMPT_TOO_LONG, 400, "context_length_exceeded"),
        (codes.INVALID_REQUEST, 400, "invalid_value"),
        (codes.DEADLINE_EXCEEDED, 504, "deadline_exceeded"),
        (codes.CANCELLED, 503, "workers_failed"),
        ("anything_else", 503, "workers_failed"),
    ],
)
def test_a_client_hears_of_its_own_mistake_and_else_that_the_workers_failed(
    reason: str, status: int, code: str
) -> None:
    failed = AttemptFailed("why", reason=reason, blame=("p/1|d/1",), retryable=False)
    assert (failed.blame, failed.retryable) == (("p/1|d/1",), False)
    told = failed.for_client()
    assert (told.status, told.code) == (status, code)
    # Only what the workers could not do is worth another try, and only that names no details.
    assert (told.retry_after_s is not None) == (status == 503)
    assert ("why" in str(told)) == (status == 400)


def test_a_full_pool_is_nobodys_fault_and_says_whether_it_broke_off() -> None:
    full = NoRoom("decode", "all full")
    assert (full.pool, full.reason, full.broke_off) == ("decode", codes.NO_CAPACITY, False)
    gone = NoRoom("prefill", "drains", reason=codes.DRAINING, broke_off=True)
    assert (gone.pool, gone.reason, gone.broke_off) == ("prefill", codes.DRAINING, True)
