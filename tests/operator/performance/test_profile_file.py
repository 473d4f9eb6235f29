"""Tests of finding a profile by its name or in a file; the error for a wrong file names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_operator.performance.origin import Origin
from disagg_operator.performance.profile import PROFILES, ProfileError
from disagg_operator.performance.profile_file import load, load_of, load_with_origin, save


@pytest.mark.parametrize("name", PROFILES)
def test_what_was_written_is_read(name: str, tmp_path: Path) -> None:
    save(PROFILES[name], tmp_path / "p.json")
    assert load(str(tmp_path / "p.json")) == PROFILES[name] == load(name)


def test_neither_name_nor_file() -> None:
    with pytest.raises(ProfileError, match="70b-h100-tp4"):
        load("70b-h100-tp5")


@pytest.mark.parametrize("content", [b"[]", b"\xff\xfe"])
def test_a_file_that_holds_no_profile_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_bytes(content)
    with pytest.raises(ProfileError, match=r"p\.json"):
        load(str(tmp_path / "p.json"))


OF = Origin("meta-llama/Llama-3.1-8B-Instruct", "some-engine", "1.2", "H100", "0.2.0", "2026-11-30", 0.12)


def test_where_a_profile_comes_from_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "p.json"
    save(PROFILES["8b-h100"], file, OF)
    assert load_with_origin(str(file)) == (PROFILES["8b-h100"], OF)
    assert load(str(file)) == PROFILES["8b-h100"]
    assert load_with_origin("8b-h100") == (PROFILES["8b-h100"], None)


def test_a_profile_of_another_model_or_hardware_is_refused_with_both_names(tmp_path: Path) -> None:
    file = str(tmp_path / "p.json")
    save(PROFILES["8b-h100"], Path(file), OF)
    for model in ("llama-3.1-8b", "Llama-3.1-8B-Instruct", "meta-llama/Llama-3.1-8B"):
        assert load_of(file, model, "h100") == PROFILES["8b-h100"]
    with pytest.raises(ProfileError, match=r"of the model meta-llama/Llama-3.1-8B-Instruct, not of llama-3.1-70b.*any"):
        load_of(file, "llama-3.1-70b", "H100")
    with pytest.raises(ProfileError, match="is a profile of H100, not of A100"):
        load_of(file, "llama-3.1-8b", "A100")
    assert load_of(file, "llama-3.1-70b", "A100", anyway=True) == PROFILES["8b-h100"]


def test_a_profile_of_release_0_1_0_says_nothing_of_its_model_and_is_read(pytestconfig: pytest.Config) -> None:
    file = str(pytestconfig.rootpath / "tests" / "releases" / "0.1.0" / "states" / "profile.json")
    assert load_with_origin(file)[1] is None
    assert load_of(file, "llama-3.1-8b", "H100") == load(file)
