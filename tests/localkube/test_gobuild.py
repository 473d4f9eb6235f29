"""Tests that a half-built cache, a truncated file or a changed pin is built again, and a whole one
never.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from localkube import gobuild
from localkube.gobuild import Group
from localkube.settings import ClusterError, Settings

MAIN = 'package main\n\nfunc main() { println("%s") }\n'


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Settings, Group]:
    """A group of two programs without dependencies."""
    monkeypatch.setattr(gobuild, "E2E_DIR", tmp_path)
    folder = tmp_path / "gomods/tiny"
    for name in ("one", "two"):
        (folder / name).mkdir(parents=True)
        (folder / name / "main.go").write_text(MAIN % name)
    (folder / "go.mod").write_text("module example.org/tiny\n\ngo 1.22\n")
    group = Group(name="tiny", packages={"bin/one": "./one", "bin/two": "./two"})
    return Settings(cache=tmp_path / "cache", state=tmp_path / "state"), group


def says(settings: Settings, group: Group, name: str) -> str:
    path = gobuild.programs_dir(settings, group) / name
    return subprocess.run([path], capture_output=True, text=True, timeout=10, check=True).stderr.strip()


@pytest.mark.slow
def test_what_is_missing_or_cut_is_built_again_and_nothing_else(tiny: tuple[Settings, Group]) -> None:
    settings, group = tiny
    gobuild.build(settings, group, ["bin/one"])
    assert gobuild.missing(settings, group) == ["bin/two"]
    gobuild.build(settings, group)
    assert [says(settings, group, f"bin/{n}") for n in ("one", "two")] == ["one", "two"]

    folder = gobuild.programs_dir(settings, group)
    kept = (folder / "bin/one").stat().st_mtime_ns
    cut = (folder / "bin/two").read_bytes()[:1000]
    (folder / "bin/two").write_bytes(cut)
    (folder / "part").mkdir()
    (folder / "part/two").write_bytes(cut)  # as a killed run leaves it
    assert gobuild.missing(settings, group) == ["bin/two"]
    gobuild.build(settings, group)
    assert says(settings, group, "bin/two") == "two"
    assert (folder / "bin/one").stat().st_mtime_ns == kept
    assert not (folder / "part").exists()


@pytest.mark.slow
def test_a_changed_pin_has_a_folder_of_its_own(tiny: tuple[Settings, Group]) -> None:
    settings, group = tiny
    before = gobuild.programs_dir(settings, group)
    (group.folder / "go.mod").write_text("module example.org/tiny\n\ngo 1.23\n")
    assert gobuild.programs_dir(settings, group) != before
    assert gobuild.missing(settings, group) == ["bin/one", "bin/two"]


@pytest.mark.slow
def test_a_build_that_fails_shows_the_compilers_words_and_leaves_nothing_half(tiny: tuple[Settings, Group]) -> None:
    settings, group = tiny
    (group.folder / "two/main.go").write_text("package main\n\nfunc main() { undefinedName() }\n")
    with pytest.raises(ClusterError, match="undefinedName"):
        gobuild.build(settings, group)
    assert gobuild.missing(settings, group) == ["bin/one", "bin/two"]


def pins(group: Group) -> dict[str, str]:
    """Return the version of each module that is pinned."""
    text = (group.folder / "go.mod").read_text()
    return dict(re.findall(r"^\t(\S+) (v\S+)(?: // indirect)?$", text.partition("\nreplace")[0], re.MULTILINE))


def test_what_prometheus_and_its_adapter_share_with_the_cluster_is_compiled_once() -> None:
    """A different version of one of these modules means that everything built on it is compiled
    again.

    That takes two minutes of a cold CI.
    """
    cluster, metrics = pins(gobuild.CLUSTER), pins(gobuild.METRICS)
    assert len(cluster.keys() & metrics.keys()) > 100
    profilers = {"github.com/felixge/fgprof", "github.com/google/pprof"}  # small, and little is built on them
    assert {m for m in cluster.keys() & metrics.keys() if cluster[m] != metrics[m]} <= profilers
    assert set(gobuild.CLUSTER.tags) <= set(gobuild.METRICS.tags)
