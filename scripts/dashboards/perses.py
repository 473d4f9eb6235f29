"""Dashboards as Perses reads them."""

from __future__ import annotations

import json
from typing import Any

from scripts.dashboards.board import Board, Kind, Panel, Row, Unit, Variable, lay_out

PROJECT = "disagg"
_UNITS: dict[Unit, dict[str, Any]] = {
    Unit.SECONDS: {"unit": "seconds"},
    Unit.BYTES: {"unit": "bytes", "shortValues": True},
    Unit.BYTES_PER_S: {"unit": "bytes/sec", "shortValues": True},
    Unit.SHARE: {"unit": "percent-decimal"},
    Unit.NUMBER: {"unit": "decimal", "shortValues": True},
    Unit.REQUESTS_PER_S: {"unit": "requests/sec"},
    Unit.TOKENS_PER_S: {"unit": "decimal", "shortValues": True},
    Unit.EVENTS_PER_S: {"unit": "ops/sec"},
    Unit.TIME: {"unit": "datetime-iso"},
}
_RED = "#c62828"
_SOURCE = {"kind": "PrometheusDatasource"}


def as_text(board: Board) -> str:
    """Return a dashboard as `percli apply` and the sidecar of Perses read it."""
    return json.dumps(content(board), indent=1, sort_keys=True) + "\n"


def content(board: Board) -> dict[str, Any]:
    panels: dict[str, Any] = {}
    layouts = []
    for number, row in enumerate(board.rows):
        keys = [f"p{number}-{place}" for place in range(len(row.panels))]
        panels |= {key: _panel(panel) for key, panel in zip(keys, row.panels, strict=True)}
        layouts.append(_layout(row, keys))
    spec = {
        "display": {"name": board.title, "description": board.description},
        "duration": "1h",
        "refreshInterval": "30s",
        "variables": [_variable(variable) for variable in board.variables],
        "panels": panels,
        "layouts": layouts,
    }
    return {"kind": "Dashboard", "metadata": {"name": board.name, "project": PROJECT}, "spec": spec}


def _layout(row: Row, keys: list[str]) -> dict[str, Any]:
    items = [
        {"x": x, "y": y, "width": panel.width, "height": panel.height, "content": {"$ref": f"#/spec/panels/{key}"}}
        for (panel, x, y), key in zip(lay_out(row), keys, strict=True)
    ]
    display = {"title": row.title, "collapse": {"open": True}}
    return {"kind": "Grid", "spec": {"display": display, "items": items}}


def _variable(variable: Variable) -> dict[str, Any]:
    name, _, rest = variable.series.partition("{")
    query = {"datasource": _SOURCE, "labelName": variable.label, "matchers": [f"{name}{{{rest}" if rest else name]}
    spec = {
        "name": variable.name,
        "display": {"name": variable.name.capitalize()},
        "allowMultiple": variable.several,
        "allowAllValue": variable.several,
        "plugin": {"kind": "PrometheusLabelValuesVariable", "spec": query},
    }
    if variable.several:
        spec |= {"customAllValue": ".*", "defaultValue": "$__all"}
    return {"kind": "ListVariable", "spec": spec}


def _panel(panel: Panel) -> dict[str, Any]:
    plugin = {Kind.NUMBER: _number, Kind.TABLE: _table}.get(panel.kind, _lines)(panel)
    queries = []
    for query in panel.queries:
        asked = {"datasource": _SOURCE, "query": query.expression, "seriesNameFormat": query.name}
        spec: dict[str, Any] = {"plugin": {"kind": "PrometheusTimeSeriesQuery", "spec": asked}}
        queries.append({"kind": "TimeSeriesQuery", "spec": spec})
    display = {"name": panel.title, "description": panel.description}
    return {"kind": "Panel", "spec": {"display": display, "plugin": plugin, "queries": queries}}


def _thresholds(panel: Panel) -> dict[str, Any]:
    """Return from where on a value is red."""
    if panel.red_below is not None:
        return {"defaultColor": _RED, "steps": [{"value": panel.red_below, "color": "#2e7d32"}]}
    if panel.red_above is not None:
        return {"steps": [{"value": panel.red_above, "color": _RED}]}
    return {}


def _number(panel: Panel) -> dict[str, Any]:
    spec: dict[str, Any] = {"calculation": "last-number", "format": _UNITS[panel.unit]}
    if red := _thresholds(panel):
        spec["thresholds"] = red
    return {"kind": "StatChart", "spec": spec}


def _lines(panel: Panel) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "legend": {"position": "bottom", "mode": "list"},
        "yAxis": {"format": _UNITS[panel.unit], "min": 0},
        "visual": {"lineWidth": 1, "areaOpacity": 0.4 if panel.kind is Kind.STACK else 0.0},
    }
    if panel.kind is Kind.STACK:
        spec["visual"]["stack"] = "all"
    if red := _thresholds(panel):
        spec["thresholds"] = red
    return {"kind": "TimeSeriesChart", "spec": spec}


def _table(panel: Panel) -> dict[str, Any]:
    several = len(panel.queries) > 1
    columns = [{"name": "timestamp", "hide": True}]
    columns += [
        {"name": f"value #{place}" if several else "value", "header": query.name}
        for place, query in enumerate(panel.queries, 1)
    ]
    spec: dict[str, Any] = {"density": "compact", "columnSettings": columns}
    if several:
        spec["transforms"] = [{"kind": "MergeSeries", "spec": {}}]
    return {"kind": "Table", "spec": spec}
