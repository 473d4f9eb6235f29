"""A measurement that describes nothing is refused, with the reason."""

from __future__ import annotations

from dataclasses import replace

import pytest

from disagg_operator.performance.fit import Fitted, Residual
from disagg_operator.performance.fit_quality import Repeated, refusals
from disagg_operator.performance.profile import PROFILES

GOOD = Fitted(
    PROFILES["8b-h100"],
    (Residual("16 tokens alone", 0.010, 0.0101), Residual("1024 tokens alone", 0.050, 0.048)),
    (Residual("4 x 100 tokens", 0.008, 0.009),),
)
QUIET = [Repeated("16 tokens alone", (0.010, 0.0101, 0.0102)), Repeated("1024 tokens alone", (0.050, 0.051, 0.090))]
BUSY = [Repeated("16 tokens alone", (0.010, 0.025, 0.040)), Repeated("1024 tokens alone", (0.050, 0.080, 0.190))]


def test_a_good_measurement_is_accepted_with_a_single_outlier() -> None:
    quiet = [*QUIET, Repeated("64 tokens alone", (0.020, 0.0201))]  # two times are too few to tell
    assert refusals(GOOD, quiet) == []
    assert refusals(GOOD, []) == []
    assert quiet[-1].spread == 0


def test_a_busy_machine_is_said_with_the_times() -> None:
    (told,) = refusals(GOOD, BUSY)
    assert told.startswith("the machine is busy: the same request took 50 ms to 190 ms (1024 tokens alone)")
    assert "Stop what else runs there" in told
    assert refusals(GOOD, BUSY, 10.0) == []


@pytest.mark.parametrize(("fitted_s", "refused"), [(0.064, False), (0.066, True), (0.036, False), (0.034, True)])
def test_times_that_are_not_fitted_within_30_percent_are_refused(fitted_s: float, refused: bool) -> None:
    wrong = replace(GOOD, prefill=(GOOD.prefill[0], Residual("1024 tokens alone", 0.050, fitted_s)))
    told = refusals(wrong, QUIET)
    assert bool(told) is refused
    if refused:
        assert told[0].startswith("1 of 3 times are not fitted within 30 %: 1024 tokens alone took 50 ms")


def test_prompts_that_cost_nothing_are_refused() -> None:
    """On a busy machine a fit may say 0 us a prompt token, which plans any number of prompts."""
    free = replace(GOOD, profile=replace(GOOD.profile, b_s_per_token=0.0, c_s_per_token2=0.0))
    (told,) = refusals(free, QUIET)
    assert told.startswith("the time of a prompt does not grow with its length: 10 ms for 16 tokens alone")
