"""An observation knows whether it sees what arrives, and which pods are whose."""

from __future__ import annotations

import math

import pytest

from disagg_operator.autoscaling.policy.observation import DecodeSignals, Observation, Pods, PrefillSignals

PREFILL, DECODE = Pods(2, 1), Pods(5, 5)


@pytest.mark.parametrize(("arrivals", "blind"), [(math.nan, True), (0.0, False), (7.0, False)])
def test_without_arrivals_an_observation_is_blind(arrivals: float, blind: bool) -> None:
    assert Observation(0.0, 5.0, PrefillSignals(PREFILL, arrivals), DecodeSignals(DECODE)).blind == blind


def test_each_pool_has_its_own_pods() -> None:
    o = Observation(0.0, 5.0, PrefillSignals(PREFILL), DecodeSignals(DECODE))
    assert (o.pods("prefill"), o.pods("decode")) == (PREFILL, DECODE)
