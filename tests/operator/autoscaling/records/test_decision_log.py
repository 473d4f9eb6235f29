"""The decision log on disk is bounded, and every file can be replayed from its first line."""

from __future__ import annotations

import json
from pathlib import Path

from disagg_operator.autoscaling.records.decision_log import DecisionLog

KEY = ("ns", "chat")


def write(records: DecisionLog, at_s: float, settings: object = "a") -> None:
    if records.must_begin(KEY, settings):
        records.write(KEY, {"begin": True, "t": at_s, "state": {}}, begins=settings)
    records.write(KEY, {"t": at_s, "observation": {"now_s": at_s}})


def times(records: DecisionLog, since_s: float = 0.0) -> list[float]:
    return [json.loads(line)["t"] for line in records.read(KEY, since_s)]


def test_a_process_begins_a_file_and_reading_starts_at_a_beginning(tmp_path: Path) -> None:
    for start in (0, 100):
        records = DecisionLog(tmp_path)
        for i in range(3):
            write(records, start + i)
    assert times(records) == [0, 0, 1, 2, 100, 100, 101, 102]
    assert times(records, since_s=101.5) == [100, 100, 101, 102]
    assert times(records, since_s=50) == [0, 0, 1, 2, 100, 100, 101, 102]


def test_what_is_under_other_settings_begins_on_its_own(tmp_path: Path) -> None:
    records = DecisionLog(tmp_path)
    for i, settings in enumerate("aabba"):
        write(records, i, settings)
    assert times(records) == [0, 0, 1, 2, 2, 3, 4, 4]


def test_when_the_policies_start_anew_a_run_begins(tmp_path: Path) -> None:
    records = DecisionLog(tmp_path)
    write(records, 0)
    records.begin_anew()
    write(records, 1)
    assert times(records) == [0, 0, 1, 1]


def test_what_follows_half_a_line_begins_on_its_own(tmp_path: Path) -> None:
    records = DecisionLog(tmp_path)
    for i in range(3):
        write(records, i)
    path = next(tmp_path.iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    again = DecisionLog(tmp_path)
    write(again, 100)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["t"] for line in (*lines[:3], *lines[4:])] == [0, 0, 1, 100, 100]
    assert json.loads(lines[4])["begin"]


def test_size_is_bounded_and_the_newest_is_kept(tmp_path: Path) -> None:
    records = DecisionLog(tmp_path, max_file_bytes=2000)
    for i in range(500):
        write(records, i)
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 2 * 2000 + 200
    found = list(records.read(KEY))
    assert found[0].startswith(b'{"begin"')
    assert json.loads(found[-1])["t"] == 499


def test_all_resources_together_are_bounded(tmp_path: Path) -> None:
    records = DecisionLog(tmp_path, max_file_bytes=1000, max_total_bytes=5000)
    for i in range(40):
        for name in ("a", "b", "c", "d", "e", "f"):
            records.write(("ns", name), {"t": i, "x": "y" * 100})
    assert sum(p.stat().st_size for p in tmp_path.iterdir()) < 5000 + 6 * 1200


def test_a_resource_that_is_gone_leaves_nothing(tmp_path: Path) -> None:
    records = DecisionLog(tmp_path)
    write(records, 1)
    records.forget(KEY)
    assert list(tmp_path.iterdir()) == []
    assert times(records) == []
    assert records.must_begin(KEY, "a")
