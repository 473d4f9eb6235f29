"""The check that generated files agree with the code that they are made from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from scripts import generate


def test_the_repository_has_no_stale_file() -> None:
    assert generate.stale() == {}


@pytest.mark.parametrize(
    "name", ["crds/disagg.dev_disaggpools.yaml", "helm/disagg/crds/disagg.dev_disaggdeployments.yaml"]
)
@pytest.mark.parametrize("change", ["edited", "missing"])
def test_a_crd_that_was_edited_or_is_missing_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: str
) -> None:
    monkeypatch.setattr(generate, "ROOT", tmp_path)
    files = generate.crd_files()
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert generate.stale((generate.crd_files,)) == {}
    path = tmp_path / name
    if change == "edited":
        path.write_text(path.read_text().replace("minimum: 0", "minimum: 1", 1))
    else:
        path.unlink()
    assert generate.stale((generate.crd_files,)) == {path: files[path]}


@pytest.mark.parametrize("line", ["version", "appVersion"])
def test_a_chart_of_another_version_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str) -> None:
    chart = tmp_path / "Chart.yaml"
    text = generate.CHART.read_text()
    (line_now,) = [found for found in text.splitlines() if found.startswith(f"{line}: ")]
    chart.write_text(text.replace(f"{line_now}\n", f"{line}: 0.0.1\n"))
    monkeypatch.setattr(generate, "CHART", chart)
    assert generate.stale((generate.chart_files,)) == {chart: text}


def test_a_chart_without_a_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chart = tmp_path / "Chart.yaml"
    chart.write_text("name: disagg\nappVersion: 1.0.0\n")
    monkeypatch.setattr(generate, "CHART", chart)
    with pytest.raises(ValueError, match="version"):
        generate.stale((generate.chart_files,))


def test_the_check_passes_as_a_command() -> None:
    subprocess.run([sys.executable, generate.__file__, "--check"], check=True, timeout=60)
