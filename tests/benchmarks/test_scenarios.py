"""Tests of the scenarios of the autoscaling benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks.autoscaling import scenarios
from benchmarks.autoscaling.scenarios import SCENARIOS, Run, Scenario

from disagg_operator.simulation.ordering import ORDERS
from disagg_operator.simulation.traces import Trace

_AT = np.arange(0.0, 8 * 3600.0, 10.0)
SOURCE = Trace("source", _AT, np.where(_AT < 6 * 3600, 100, 9000), np.zeros_like(_AT, int), np.full(len(_AT), 7))


def test_the_rate_follows_its_line_and_lengths_are_of_the_first_six_hours() -> None:
    found = scenarios.load(SCENARIOS["ramp10x"], SOURCE)
    assert found.arrival_s.max() < 6 * 3600.0
    assert (np.diff(found.arrival_s) >= 0).all()
    per_s = np.histogram(found.arrival_s, bins=[0, 7200, 7800, 21600])[0] / [7200, 600, 13800]
    assert per_s == pytest.approx([3.0, 16.5, 30.0], rel=0.05)
    assert (set(found.prompt_tokens), set(found.output_tokens)) == ({100}, {7})
    assert (found.arrival_s == scenarios.load(SCENARIOS["ramp10x"], SOURCE).arrival_s).all()


def test_answers_are_three_times_as_long_from_their_hour_on() -> None:
    found = scenarios.load(SCENARIOS["output3x"], SOURCE)
    late = found.arrival_s >= 3 * 3600.0
    assert (set(found.output_tokens[~late]), set(found.output_tokens[late])) == ({7}, {21})


def test_budgets_are_run_in_both_orders_and_too_few_gpus_beside_every_split() -> None:
    runs = list(scenarios.runs("step10x_budgets"))
    assert {(r.gpus, r.order) for r in runs} == {(gpus, order) for gpus in (40, 48, 60) for order in ORDERS}
    splits = [r.policy for r in scenarios.runs("step10x_too_few") if r.policy.startswith("static")]
    assert sorted(splits) == sorted(2 * [f"static:{p},{7 - p}" for p in range(1, 7)])
    assert Run("unplaceable", "predictive").setup().room == 10
    assert Run("infeasible_tpot", "predictive").setup().tpot_s == 0.028
    assert Run("step10x", "predictive", gpus=40).setup().max_gpus == 40


def test_a_run_is_kept_and_an_unknown_name_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SCENARIOS, "short", Scenario(((0, 2), (0.25, 2)), "nothing"))
    (tmp_path / scenarios.SOURCE).write_bytes(b"")
    monkeypatch.setattr("disagg_operator.simulation.traces.read", lambda _: SOURCE)
    argv = ["scenarios", "--traces", str(tmp_path), "--cache", str(tmp_path / "kept"), "short"]
    monkeypatch.setattr("sys.argv", argv)
    scenarios.main()
    first = capsys.readouterr().out
    assert "| short | predictive | arrival |" in first
    monkeypatch.setattr("disagg_operator.simulation.traces.read", None)  # everything is kept
    scenarios.main()
    assert capsys.readouterr().out == first
    monkeypatch.setattr("sys.argv", [*argv, "nonsense"])
    with pytest.raises(SystemExit):
        scenarios.main()
    assert "nonsense is none of step10x," in capsys.readouterr().err
