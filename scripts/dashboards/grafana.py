"""Dashboards as Grafana reads them, made with its Foundation SDK."""

from __future__ import annotations

import json
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as model
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat
from scripts.dashboards.board import Board, Kind, Panel, Query, Unit, Variable, lay_out, row_height

_UNITS = {
    Unit.SECONDS: "s",
    Unit.BYTES: "bytes",
    Unit.BYTES_PER_S: "Bps",
    Unit.SHARE: "percentunit",
    Unit.NUMBER: "short",
    Unit.REQUESTS_PER_S: "reqps",
    Unit.TOKENS_PER_S: "short",
    Unit.EVENTS_PER_S: "ops",
    Unit.TIME: "dateTimeAsIso",
}
_SOURCE = model.DataSourceRef(type_val="prometheus", uid="$datasource")
_GREEN, _RED = "green", "red"
# How often the boards ask again; scrapes are no more frequent.
_REFRESH = "30s"


def as_text(board: Board) -> str:
    """Return a dashboard as a file for Grafana's provisioning, or for its sidecar."""
    built = (
        dashboard.Dashboard(board.title)
        .uid(board.name)
        .description(board.description)
        .tags(["disagg"])
        .timezone("browser")
        .refresh(_REFRESH)
        .time("now-1h", "now")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .link(
            dashboard.DashboardLink("disagg")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags(["disagg"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for variable in board.variables:
        built.with_variable(_variable(variable))
    if board.events is not None:
        built.annotation(_events(board.events))
    number, top = 1, 0
    for row in board.rows:
        place = models.GridPos(h=1, w=24, x=0, y=top)
        built.with_row(dashboard.Row(row.title).id(number).grid_pos(place))
        for panel, x, y in lay_out(row):
            number += 1
            place = models.GridPos(h=panel.height, w=panel.width, x=x, y=top + 1 + y)
            built.with_panel(_panel(panel).id(number).grid_pos(place))
        number, top = number + 1, top + 1 + row_height(row)
    return json.dumps(json.loads(JSONEncoder().encode(built.build())), indent=1, sort_keys=True) + "\n"


def _variable(variable: Variable) -> dashboard.QueryVariable:
    found = (
        dashboard.QueryVariable(variable.name)
        .label(variable.name.capitalize())
        .query(f"label_values({variable.series}, {variable.label})")
        .datasource(_SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
    )
    return found.multi(True).include_all(True).all_value(".*") if variable.several else found


def _events(query: Query) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name("Scalings")
        .datasource(_SOURCE)
        .enable(True)
        .icon_color("blue")
        .expr(query.expression)
        .title_format(query.name)
        .step("60s")
    )


def _panel(panel: Panel) -> Any:
    # The builders of panels have these methods in common, but no type that has them.
    made: Any = {Kind.NUMBER: _number, Kind.TABLE: _table}.get(panel.kind, _lines)(panel)
    made.title(panel.title).description(panel.description).datasource(_SOURCE).unit(_UNITS[panel.unit])
    if panel.red_above is not None or panel.red_below is not None:
        made.thresholds(_thresholds(panel))
    for place, query in enumerate(panel.queries):
        made.with_target(_target(panel, query, chr(ord("A") + place)))
    return made


def _target(panel: Panel, query: Query, ref: str) -> prometheus.Dataquery:
    found = prometheus.Dataquery().expr(query.expression).ref_id(ref).legend_format(query.name).datasource(_SOURCE)
    if panel.kind is Kind.TABLE:
        return found.instant().format(PromQueryFormat.TABLE)
    return found.instant() if panel.kind is Kind.NUMBER else found.range()


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    if panel.red_below is not None:
        steps = [models.Threshold(None, _RED), models.Threshold(panel.red_below, _GREEN)]
    else:
        steps = [models.Threshold(None, _GREEN), models.Threshold(panel.red_above, _RED)]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _number(panel: Panel) -> stat.Panel:
    return (
        stat.Panel()
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(model.BigValueGraphMode.NONE)
        .no_value("-")
    )


def _lines(panel: Panel) -> timeseries.Panel:
    found = (
        timeseries.Panel()
        .legend(common.VizLegendOptions().show_legend(True).placement(model.LegendPlacement.BOTTOM))
        .tooltip(common.VizTooltipOptions().mode(model.TooltipDisplayMode.MULTI).sort(model.SortOrder.DESCENDING))
        .line_width(1)
        .min(0)
    )
    if panel.kind is Kind.STACK:
        found.fill_opacity(40).stacking(common.StackingConfig().mode(model.StackingMode.NORMAL).group("A"))
    if panel.red_above is not None or panel.red_below is not None:
        style = common.GraphThresholdsStyleConfig().mode(model.GraphThresholdsStyleMode.DASHED)
        found.thresholds_style(style)
    return found


def _table(panel: Panel) -> table.Panel:
    several = len(panel.queries) > 1
    renamed = {
        f"Value #{chr(ord('A') + place)}" if several else "Value": query.name
        for place, query in enumerate(panel.queries)
    }
    found = table.Panel().with_transformation(models.DataTransformerConfig("merge", options={}))
    organize = {"excludeByName": {"Time": True}, "renameByName": renamed}
    return found.with_transformation(models.DataTransformerConfig("organize", options=organize))
