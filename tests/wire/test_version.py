"""Tests that the wheel, the chart, `--version` and `disagg_build_info` have one version."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from prometheus_client import CollectorRegistry

from disagg_adapter import metrics as adapter_metrics
from disagg_operator.cli import entry as cli
from disagg_operator.controller import metrics as operator_metrics
from disagg_router import metrics as router_metrics
from disagg_wire.version import VERSION, semver
from disagg_worker.server import metrics as worker_metrics

REPO = Path(__file__).resolve().parents[2]
PACKAGES = ("disagg_operator", "disagg_router", "disagg_worker", "disagg_adapter")


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("0.2.0", "0.2.0"),
        ("0.2.0.dev0", "0.2.0-dev.0"),
        ("1.10.3a1", "1.10.3-alpha.1"),
        ("1.10.3b2", "1.10.3-beta.2"),
        ("1.10.3rc12", "1.10.3-rc.12"),
    ],
)
def test_a_version_of_the_wheel_has_one_form_for_chart_and_images(version: str, expected: str) -> None:
    assert semver(version) == expected


@pytest.mark.parametrize("version", ["0.2", "0.2.0.post1", "0.2.0+local", "1!0.2.0", "v0.2.0", "0.2.0rc1.dev3", ""])
def test_a_version_that_has_no_form_for_them_is_refused(version: str) -> None:
    with pytest.raises(ValueError, match="SemVer"):
        semver(version)


def test_the_chart_has_the_version_of_the_wheel(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(argv, cwd=REPO, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        found = re.search(r"^Version: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
    assert found is not None
    assert found[1] == VERSION
    chart = yaml.safe_load((REPO / "helm/disagg/Chart.yaml").read_text())
    assert (chart["version"], chart["appVersion"]) == (semver(found[1]), semver(found[1]))


def test_the_changelog_tells_of_this_version() -> None:
    headings = re.findall(r"^## \[(.*?)\]", (REPO / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert "dev" in VERSION or VERSION in headings


def test_the_command_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"disagg {VERSION}\n")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_process_says_its_version_without_any_installed_package(package: str) -> None:
    argv = [sys.executable, "-S", "-m", package, "--version"]
    environment = {"PYTHONPATH": f"{REPO}/operator:{REPO}/worker", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == f"{package.replace('_', '-')} {VERSION}\n"


def test_what_all_processes_share_needs_the_standard_library_alone() -> None:
    script = f"""
import importlib, pkgutil, sys
sys.path.insert(0, {str(REPO / "worker")!r})
import disagg_wire
for module in pkgutil.walk_packages(disagg_wire.__path__, "disagg_wire."):
    importlib.import_module(module.name)
"""
    subprocess.run([sys.executable, "-I", "-S", "-c", script], check=True, timeout=60)


@pytest.mark.parametrize(
    ("component", "registry"),
    [
        ("operator", operator_metrics.Metrics().registry),
        ("router", router_metrics.Metrics().registry),
        ("worker", worker_metrics.Metrics(lambda: None, 16).registry),
        ("adapter", adapter_metrics.Metrics(lambda: None).registry),
    ],
)
def test_each_process_tells_what_it_is_built_of(component: str, registry: CollectorRegistry) -> None:
    labels = {"component": component, "version": VERSION, "python": platform.python_version()}
    (series,) = [s for family in registry.collect() for s in family.samples if s.name == "disagg_build_info"]
    assert (series.labels, series.value) == (labels, 1.0)
