"""Tests of the membership file: it is read when it changes, and its content kept while it is
broken.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from disagg_router.membership.file import FileMembership
from disagg_router.workers.worker_info import Member


def write(path: Path, content: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(content)
    fresh.replace(path)


def listed(*names: str) -> str:
    return json.dumps({"workers": [{"name": n, "url": f"http://{n}"} for n in names]})


def test_it_is_synced_with_the_first_good_content_and_follows_changes(tmp_path: Path) -> None:
    members = FileMembership(tmp_path / "m.json")
    members.read()
    assert not members.synced
    write(tmp_path / "m.json", listed("a"))
    members.read()
    assert members.synced
    assert members.members() == {"a": Member("a", "http://a")}
    write(tmp_path / "m.json", listed("a", "b"))
    members.read()
    assert set(members.members()) == {"a", "b"}
    write(tmp_path / "m.json", listed())
    members.read()
    assert members.members() == {}


@pytest.mark.parametrize("bad", ["", "{", "[]", "{}", '{"workers": 5}', '{"workers": [{"name": "x"}]}', "null"])
def test_the_last_good_content_stays_while_the_file_is_broken(tmp_path: Path, bad: str) -> None:
    members = FileMembership(tmp_path / "m.json")
    write(tmp_path / "m.json", listed("a"))
    members.read()
    write(tmp_path / "m.json", bad)
    members.read()
    assert set(members.members()) == {"a"}
    write(tmp_path / "m.json", listed("b"))
    members.read()
    assert set(members.members()) == {"b"}
