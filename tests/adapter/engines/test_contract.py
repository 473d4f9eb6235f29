"""Tests of the seam's own arithmetic."""

from __future__ import annotations

import pytest

from disagg_adapter.engines.contract import EngineFault, Unusable, Work
from disagg_protocol.bodies import Sampling


@pytest.mark.parametrize(
    ("tokens", "prompt", "most", "fewest", "expected"),
    [(3, 3, 10, 4, (0, 10, 4)), (8, 3, 10, 4, (5, 5, 0)), (5, 3, 10, 4, (2, 8, 2))],
)
def test_what_was_emitted_counts(
    tokens: int, prompt: int, most: int, fewest: int, expected: tuple[int, int, int]
) -> None:
    sampling = Sampling(seed=1, max_new_tokens=most, min_tokens=fewest)
    work = Work("r", list(range(tokens)), prompt, sampling, "", None)
    assert (work.emitted, work.new_tokens, work.min_new_tokens) == expected


def test_a_fault_is_retryable_unless_it_says_otherwise() -> None:
    assert EngineFault("internal", "x").retryable
    fault = EngineFault("invalid_request", "x", retryable=False)
    assert (fault.code, str(fault), fault.retryable) == ("invalid_request", "x", False)
    assert Unusable("WeightsRefused", "why").reason == "WeightsRefused"
