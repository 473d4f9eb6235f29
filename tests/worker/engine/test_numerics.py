"""Tests that a token does not depend on who computes it and with whom: after a failover, with a
prefix hit, in any batch. The models are in bfloat16, where rounding is coarse.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.worker import failovers
from tests.worker.oracle import MODEL


@pytest.fixture(scope="module")
def random_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return failovers.random_model(tmp_path_factory.mktemp("random"))


@pytest.fixture(params=["random", "bundled"])
def model(request: pytest.FixtureRequest, random_model: Path) -> Path:
    return MODEL if request.param == "bundled" else random_model


def test_failed_over_streams_go_on_with_the_same_tokens(model: Path) -> None:
    continued, differ = failovers.failovers(model, 10, 204, seed=1)
    assert continued > 30
    assert differ == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_thousand_failed_over_streams_go_on_with_the_same_tokens(model: Path) -> None:
    """Continue half a thousand streams of each model."""
    continued, differ = failovers.failovers(model, 130, 220, seed=2)
    print(f"{continued} streams were continued, {differ} differ")
    assert continued >= 500
    assert differ == 0


def test_a_prefix_hit_changes_no_token(model: Path) -> None:
    assert failovers.prefix_hits(model, 10, seed=3) == (10, 0)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_hundred_prefix_hits_change_no_token(model: Path) -> None:
    assert failovers.prefix_hits(model, 100, seed=4) == (100, 0)
