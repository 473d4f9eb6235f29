"""Tests that the page of the validation keeps what was not measured again, and says so."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from benchmarks.validation.loads import LOADS, requests
from benchmarks.validation.page import load_file, predict, profile_file_of, report

from disagg_operator.performance.profile import PROFILES, Profile
from disagg_operator.performance.profile_file import save
from disagg_wire.engines import BUILTIN, VLLM

pytestmark = pytest.mark.slow  # compiles the simulator
FAST = replace(PROFILES["8b-h100"], kv_tokens=20_000, max_running=16)
SLOW = replace(FAST, b_s_per_token=2e-3, d_s=30e-3)
PLAIN, OTHER = "chat 30 %", next(name for name, load in LOADS.items() if load.engine == VLLM)


def measured(folder: Path, name: str, profile: Profile, date: str) -> None:
    """Write a measurement in which everything took as long as the simulator says."""
    folder.mkdir(exist_ok=True)
    save(profile, profile_file_of(folder, LOADS[name].engine))
    trace = requests(replace(LOADS[name], requests=20), profile, seed=7)
    times = {k: v.tolist() for k, v in predict(trace, profile, LOADS[name].order).items()}
    asked = {k: getattr(trace, k).tolist() for k in ("arrival_s", "prompt_tokens", "output_tokens")}
    load_file(folder, name).write_text(json.dumps({"date": date, "machine": f"Machine of {date}"} | asked | times))


def rows(page: str) -> dict[str, list[str]]:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("| ")]
    return {name: rest for name, *rest in cells[1:]}


def test_a_load_that_was_not_measured_again_keeps_its_row_and_its_run(tmp_path: Path) -> None:
    out = tmp_path / "out"
    measured(tmp_path / "a", PLAIN, FAST, "2026-01-01")
    before = report(tmp_path / "a", out, "")
    assert set(rows(before)) == {PLAIN}
    measured(tmp_path / "b", OTHER, SLOW, "2026-02-02")
    after = report(tmp_path / "b", out, "A busy machine.")
    assert rows(after)[PLAIN] == rows(before)[PLAIN]
    assert [row[0] for row in rows(after).values()] == ["1", "2"]
    assert "(+0 %)" in rows(after)[OTHER][2]
    for run, date in ((1, "2026-01-01"), (2, "2026-02-02")):
        assert f"Run {run}: {date}, Machine of {date}. Profile: " in after
    assert after.rstrip().endswith("A busy machine.")
    kept = json.loads((out / "validation.json").read_text())
    assert [run["profile"] for run in kept["runs"]] == [asdict(FAST), asdict(SLOW)]
    # Nothing measured: the same page again.
    assert report(tmp_path / "none", out, "") == after


def test_a_run_whose_last_row_is_replaced_is_not_named_any_more(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for folder, name, profile, date in (
        ("a", PLAIN, FAST, "2026-01-01"), ("b", OTHER, SLOW, "2026-02-02"), ("c", PLAIN, SLOW, "2026-03-03"),
    ):  # fmt: skip
        measured(tmp_path / folder, name, profile, date)
        page = report(tmp_path / folder, out, "")
    assert "2026-01-01" not in page
    assert "Run 1: 2026-03-03" in page
    assert "Run 2: 2026-02-02" in page


def test_the_load_of_another_engine_names_its_version_and_that_it_ran_on_the_cpu() -> None:
    assert "0.32.0 on the CPU" in OTHER
    assert {load.engine for load in LOADS.values()} == {BUILTIN, VLLM}
