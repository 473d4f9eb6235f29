"""What the end of a run means for its key, its status and the metric."""

from __future__ import annotations

import pytest

from disagg_operator.controller.run_outcomes import RunOutcome, outcome_of
from disagg_operator.kube.errors import Conflict, Forbidden, KubeError, Retry, Terminating


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Conflict("c"), RunOutcome("conflict", "c", expected=True)),
        (Terminating("t"), RunOutcome("terminating", "t", after_s=300.0, expected=True)),
        (Forbidden("f"), RunOutcome("forbidden", "f", "RightMissing", "f")),
        (KubeError("k"), RunOutcome("kubeerror", "k", "APIServerError", "k")),
        (Retry("r", after_s=7.0), RunOutcome("retry", "r", "APIServerError", "r", 7.0, away=True)),
        (
            TimeoutError(),
            RunOutcome("timeout", "not done within 60 s", "ReconcileTimeout", "not done within 60 s", away=True),
        ),
        (
            ValueError("secret words"),
            RunOutcome(
                "bug",
                "reconcile failed",
                "InternalError",
                "ValueError; the operator's log has the details",
                bug=True,
            ),
        ),
    ],
)
def test_outcomes(error: Exception, expected: RunOutcome) -> None:
    found = outcome_of(error, timeout_s=60.0, resync_s=300.0)
    assert found == expected
    assert found.failed


def test_an_error_without_words_is_a_failure_as_well() -> None:
    assert outcome_of(Conflict(""), timeout_s=1.0, resync_s=1.0).words == "Conflict"
    assert not RunOutcome(after_s=3.0).failed
