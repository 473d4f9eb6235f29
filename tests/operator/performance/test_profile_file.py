"""Tests of finding a profile by its name or in a file; the error for a wrong file names it."""

from __future__ import annotations

from pathlib import Path

import pytest

from disagg_operator.performance.profile import PROFILES, ProfileError
from disagg_operator.performance.profile_file import load, save


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
