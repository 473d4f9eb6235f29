"""Tests of the form of the dashboards, and of the series that their queries name."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from scripts.dashboards import grafana, perses
from scripts.dashboards.board import WIDTH, Board, Kind, Panel, Row, lay_out
from scripts.dashboards.every import boards
from tests.wire import registries

from disagg_operator.status.alerts import rule_file

BOARDS = {board.name: board for board in boards()}
PANELS = {f"{board.name}/{panel.title}": (board, panel) for board in boards() for panel in board.panels}
RECORDED = {rule["record"] for group in rule_file.groups() for rule in group["rules"] if "record" in rule}
# Labels that scrape configurations add, and those of alerts and recorded series.
GIVEN = {"namespace", "pod", "disagg_deployment", "disagg_pool", "le"}
OF_RULES = {"alertname", "alertstate", "severity", "sloth_slo"}


def labels() -> dict[str, frozenset[str]]:
    found: dict[str, frozenset[str]] = {}
    for process in registries.PROCESSES.values():
        for name, own in registries.series(process()).items():
            found[name] = found.get(name, frozenset()) | own
    return found


LABELS = labels()


def selectors(expression: str) -> list[tuple[str, set[str]]]:
    """Return the series of an expression with the labels that each is selected by."""
    found = re.findall(r"(?<![\w:])((?:disagg_|process_|slo:|disagg:|ALERTS)[\w:]*)\{(.*?)\}", expression)
    return [(name, set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers))) for name, matchers in found]


@pytest.mark.parametrize("key", PANELS)
def test_a_panel_says_what_it_shows_and_asks_for_series_that_there_are(key: str) -> None:
    board, panel = PANELS[key]
    assert panel.description.endswith(".")
    assert panel.queries
    assert len({query.name for query in panel.queries}) == len(panel.queries)
    for query in panel.queries:
        bare = re.sub(r"\{.*?\}", "", query.expression)
        for name in re.findall(r"(?<![\w:])(disagg_\w+)", bare):
            assert name in LABELS or name in ("disagg_deployment", "disagg_pool"), name
        for name, used in selectors(query.expression):
            if name.startswith(("slo:", "disagg:")):
                assert name in RECORDED
                assert used <= GIVEN | OF_RULES
            elif name == "ALERTS":
                assert used <= GIVEN | OF_RULES
            elif name.startswith("disagg_"):
                assert used <= LABELS[name] | GIVEN, query.expression
        grouped = re.findall(r"\bby \((.*?)\)", query.expression)
        own = frozenset().union(*(LABELS.get(name, frozenset()) for name, _ in selectors(query.expression)))
        own |= frozenset().union(*(LABELS.get(n, frozenset()) for n in re.findall(r"disagg_\w+", bare)))
        assert {label.strip() for g in grouped for label in g.split(",")} <= own | GIVEN | OF_RULES
        named = set(re.findall(r"\{\{(\w+)\}\}", query.name))
        if grouped:
            assert named <= {label.strip() for g in grouped for label in g.split(",")}
        # The rate of what is drawn over a time fits the distance of its points.
        assert "[5m]" not in query.expression
        assert "job=" not in query.expression
    if "$deployment" in str(panel.queries):
        assert {v.name for v in board.variables} == {"namespace", "deployment"}


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_panels_fit_and_have_titles_of_their_own(board: Board) -> None:
    titles = [panel.title for panel in board.panels]
    assert len(set(titles)) == len(titles)
    for row in board.rows:
        cells: set[tuple[int, int]] = set()
        for panel, x, y in lay_out(row):
            own = {(x + i, y + j) for i in range(panel.width) for j in range(panel.height)}
            assert not own & cells
            assert max(column for column, _ in own) < WIDTH
            cells |= own


@pytest.mark.parametrize("board", BOARDS.values(), ids=list(BOARDS))
def test_both_programs_get_every_query_of_a_board(board: Board) -> None:
    expected = sorted(query.expression for panel in board.panels for query in panel.queries)
    for_grafana: dict[str, Any] = json.loads(grafana.as_text(board))
    panels = [p for p in for_grafana["panels"] if p["type"] != "row"]
    assert sorted(target["expr"] for panel in panels for target in panel["targets"]) == expected
    assert len({p["id"] for p in for_grafana["panels"]}) == len(for_grafana["panels"])
    assert for_grafana["uid"] == board.name
    names = [variable["name"] for variable in for_grafana["templating"]["list"]]
    assert names == ["datasource", *(v.name for v in board.variables)]
    for panel in panels:
        assert panel["datasource"]["uid"] == "$datasource"
        assert panel["fieldConfig"]["defaults"]["unit"]
    spec = json.loads(perses.as_text(board))["spec"]
    asked = [q["spec"]["plugin"]["spec"]["query"] for p in spec["panels"].values() for q in p["spec"]["queries"]]
    assert sorted(asked) == expected
    placed = [item["content"]["$ref"] for layout in spec["layouts"] for item in layout["spec"]["items"]]
    assert sorted(placed) == sorted(f"#/spec/panels/{key}" for key in spec["panels"])


def test_a_row_begins_a_new_line_when_it_is_full() -> None:
    panel = PANELS["disagg-engine/Running"][1]
    row = Row("r", (panel,) * 4)
    assert [(x, y) for _, x, y in lay_out(row)] == [(0, 0), (8, 0), (16, 0), (0, 8)]


def test_red_begins_above_a_limit_or_ends_at_one() -> None:
    def steps(panel: Panel) -> Any:
        return grafana._panel(panel).build().to_json()["fieldConfig"].to_json()["defaults"].to_json()["thresholds"]

    above, below = PANELS["disagg-engine/Without progress"][1], PANELS["disagg-deployment/Budget left: ttft"][1]
    for panel, colours in ((above, ["green", "red"]), (below, ["red", "green"])):
        assert [step.color for step in steps(panel).steps] == colours
    assert perses._panel(below)["spec"]["plugin"]["spec"]["thresholds"]["steps"][0]["value"] == 0
    assert above.kind is Kind.LINES
