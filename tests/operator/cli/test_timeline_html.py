"""The course of time of policies, in charts that they share."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.operator.cli.html_charts import charts_of

from disagg_operator.cli.html_page import Made
from disagg_operator.cli.plots import Timeline
from disagg_operator.cli.timeline_html import charts, save

COUNTS = ("arrivals", "waiting_requests", "decode_waiting", "ttft_total", "ttft_ok", "tpot_total", "tpot_ok")
WORKERS = [f"{pool}_{what}" for pool in ("prefill", "decode") for what in ("ready", "desired")]


def timeline(title: str, steps: int = 60, step_s: float = 15.0) -> Timeline:
    t_s = [step_s * (i + 1) for i in range(steps)]
    columns = {name: [2.0] * steps for name in (*COUNTS, *WORKERS)}
    return Timeline(title, columns | {"t_s": t_s, "prompt_tokens": [300.0] * steps, "generated_tokens": [30.0] * steps})


def test_one_policy_shows_what_it_wants_and_what_there_is() -> None:
    load, queues, workers, objectives = charts([timeline("predictive")])
    assert [s.label for s in load.series] == ["prompt tokens/s", "output tokens/s"]
    assert load.series[0].values[5] == 20.0
    assert [s.label for s in queues.series] == ["waiting for prefill", "waiting for decode"]
    assert [(s.label, s.dashed) for s in workers.series] == [
        ("prefill ready", False), ("prefill desired", True), ("decode ready", False), ("decode desired", True),
    ]  # fmt: skip
    assert objectives.at == [0.0, 5.0, 10.0, 15.0]
    assert [list(s.values) for s in objectives.series] == [[100.0] * 4] * 2
    assert {c.x.label for c in (load, queues, workers, objectives)} == {"time, min"}
    assert {c.group for c in (load, queues, workers, objectives)} == {"time"}


def test_several_policies_are_in_the_same_charts_with_a_colour_each() -> None:
    found = charts([timeline("a", 600), timeline("b", 600)])
    assert len(found) == 4
    assert [s.label for s in found[2].series] == [
        f"{p}: {pool} desired" for p in "ab" for pool in ("prefill", "decode")
    ]
    assert [s.dashed for s in found[2].series] == [False, True] * 2
    assert len({s.colour for s in found[2].series}) == 2
    assert found[0].x.label == "time, h"


def test_other_times_have_charts_of_their_own() -> None:
    found = charts([timeline("a"), timeline("b", 30), timeline("c")])
    assert [c.title.partition(": ")[0] for c in found] == ["a"] * 4 + ["b"] * 4
    assert {s.label.partition(": ")[0] for s in found[2].series} == {"a", "c"}


@pytest.mark.parametrize("rows", [[], [["predictive", "1.0"]]])
def test_a_page_has_the_table_and_the_notes(tmp_path: Path, rows: list[list[str]]) -> None:
    save(
        tmp_path / "t.html", "day", [timeline("a")], Made("disagg simulate day.csv"), ["a note"], ["policy", "x"], rows
    )
    page = (tmp_path / "t.html").read_text()
    assert page.count("<table>") == len(rows)
    assert "<li>a note</li>" in page
    assert len(charts_of(page)) == 4
    assert "disagg simulate day.csv" in page
