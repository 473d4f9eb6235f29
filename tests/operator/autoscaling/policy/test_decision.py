"""A decision is blind when data was missing, and says so by its reason."""

from __future__ import annotations

import pytest

from disagg_operator.autoscaling.policy.decision import AT_TARGET, METRICS_UNAVAILABLE, SCALE_UP, Decision


@pytest.mark.parametrize(("reason", "blind"), [(METRICS_UNAVAILABLE, True), (AT_TARGET, False), (SCALE_UP, False)])
def test_a_decision_without_metrics_is_blind(reason: str, blind: bool) -> None:
    assert Decision(2, 2, reason, "QueueDepth", None, 4.0).blind == blind
