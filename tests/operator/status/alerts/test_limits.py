"""Tests of the limits that users of the chart may set."""

from __future__ import annotations

import pytest

from disagg_operator.status.alerts import limits


def test_a_text_gets_the_limits_that_are_given_and_knows_no_others() -> None:
    text = f"{limits.limit('Shedding')} {limits.limit('LeasesHeld')}"
    assert limits.filled(text) == "0.01 60"
    assert limits.filled(text, {"Shedding": 0.5, "LeasesHeld": 4.0}) == "0.5 4"
    with pytest.raises(KeyError, match="Nobody"):
        limits.limit("Nobody")


def test_the_chart_reads_each_limit() -> None:
    lines = limits.as_text().splitlines()
    assert "Shedding: 0.01" in lines
    assert "WorkerUnheard: 10" in lines
    assert len(lines) == len(limits.LIMITS)
