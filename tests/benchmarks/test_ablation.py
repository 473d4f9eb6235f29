"""Tests of the ablation, and of the size that the policy may have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from benchmarks.ablation import __main__ as ablation
from benchmarks.ablation.constants import MODULES, Constant, code_lines, constants

from disagg_operator.autoscaling.policy import learning, miss_curve, predictive, sizing
from disagg_operator.performance import profile_file

# What the policy has today. A change may lower these numbers; to raise one, name what it buys in
# benchmarks/results/ablation.md.
MOST_LINES = 900
MOST_NAMED, MOST_IN_EXPRESSIONS = 36, 1


def test_the_policy_stays_small() -> None:
    found = constants()
    assert sum(map(code_lines, MODULES)) <= MOST_LINES
    assert sum(bool(c.name) for c in found) <= MOST_NAMED
    assert sum(not c.name for c in found) <= MOST_IN_EXPRESSIONS


def test_constants_are_those_of_modules_settings_and_expressions() -> None:
    found = {(c.module, c.name): c.values for c in constants() if c.name}
    assert found["memory", "Settings.price"] == (48.0,)
    assert found["forecast", "Tuning.level_s"] == (45.0, 150.0, 500.0)
    assert found["sizing", "_PRICE_HIGH"] == (1.5,)
    assert ("sizing", "_PRICE_GAIN") not in found  # 2 is free
    assert any(c.module == "predictive" and c.values == (0.97,) for c in constants())


def _named(module: str, name: str) -> Constant:
    return next(c for c in ablation.changed() if (c.module, c.name) == (module, name))


def test_a_constant_is_changed_where_it_is_used_and_nowhere_else() -> None:
    keep, memory, other = sizing._KEEP, learning._MEMORY_S, miss_curve._MEMORY_S
    with ablation._Changed(_named("sizing", "_KEEP"), 2.0):
        assert 2 * keep == sizing._KEEP
    with ablation._Changed(_named("learning", "_MEMORY_S"), 0.5):
        assert (0.5 * memory, other) == (learning._MEMORY_S, miss_curve._MEMORY_S)
    assert (keep, memory) == (sizing._KEEP, learning._MEMORY_S)


def test_defaults_of_settings_are_changed_too() -> None:
    settings = predictive.Settings(profile_file.load("70b-h100-tp4"), 0.06)
    price = ablation._Changed(_named("memory", "Settings.price"), 2.0).settings(settings)
    assert price.price == 2 * settings.price
    level = ablation._Changed(_named("forecast", "Tuning.level_s"), 0.5).settings(settings)
    assert level.tuning.level_s == (22.5, 75.0, 250.0)


def test_a_row_says_what_a_change_costs_and_a_run_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[float] = []

    def simulate(_: Path, day: str, constant: Constant, factor: float) -> dict[str, Any]:
        made.append(factor)
        return {"gpu_hours": 100 * factor, "attainment": 0.99}

    monkeypatch.setattr(ablation, "simulate", simulate)
    for _ in range(2):
        table = list(
            ablation.rows(["_KEEP"], lambda day, c, factor: ablation.cached(tmp_path, tmp_path, day, c, factor))
        )
        assert table[0] == "| unchanged | | 100 @99.00 | | 100 @99.00 | |"
        assert table[1].startswith("| `_KEEP` (sizing) | 1.5 | -50.0 % +0.00 | +100.0 % +0.00 |")
    assert len(made) == 6
