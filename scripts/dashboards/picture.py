"""Draw the dashboards as pages, with data that tests/integration/test_dashboards.py has kept.

Usage: python -m scripts.dashboards.picture KEPT OUT   (a file panels.json, and a folder)

The pages are of our own: neither Grafana nor Perses draws them. They show the panels as both get
them: titles, places, units, limits, and what the queries found.
"""

from __future__ import annotations

import html
import json
import math
import sys
from pathlib import Path
from typing import Any

from scripts.dashboards.board import Board, Kind, Panel, Query, Unit, lay_out
from scripts.dashboards.every import boards

_COLOURS = (
    "#3274d9",
    "#e0752d",
    "#4f9d4f",
    "#a352cc",
    "#d4a017",
    "#1aa3a3",
    "#c4162a",
    "#808080",
    "#7eb26d",
    "#ba43a9",
)
_LINE_PX, _CHART, _MARGIN = 34, (560, 150), (52, 6, 6, 18)
_STYLE = """body{margin:0;padding:12px;width:1560px;background:#f4f5f7;font:12px sans-serif;color:#222}
h1{font-size:18px;margin:0 0 2px}h2{font-size:13px;margin:12px 0 4px}p{margin:0 0 4px;color:#555}
.row{display:grid;grid-template-columns:repeat(24,1fr);grid-auto-rows:34px;gap:6px}
.panel{background:#fff;border:1px solid #d8d9dd;border-radius:3px;padding:4px 6px;overflow:hidden;display:flex;
flex-direction:column}.panel h3{font-size:12px;margin:0}.number{font-size:26px;margin:auto}.red{color:#c4162a}
.keys{font-size:10px;line-height:12px;max-height:26px;overflow:hidden;flex:none}.keys span{margin-right:8px}
svg{flex:1;min-height:0;width:100%}table{border-collapse:collapse;font-size:11px}td,th{padding:2px 8px 2px 0;
text-align:left;border-bottom:1px solid #eee}.none{margin:auto;color:#888}"""
Series = dict[str, Any]


def said(value: float, unit: Unit) -> str:
    """Return a value as a person writes it."""
    if not math.isfinite(value):
        return "-"
    if unit is Unit.SHARE:
        return f"{value:.1%}"
    if unit is Unit.SECONDS:
        size = abs(value)
        return f"{value * 1e3:.3g} ms" if 0 < size < 1 else f"{value:.3g} s"
    words = {Unit.BYTES: "B", Unit.BYTES_PER_S: "B/s", Unit.REQUESTS_PER_S: "/s", Unit.TOKENS_PER_S: "/s",
             Unit.EVENTS_PER_S: "/s"}.get(unit, "")  # fmt: skip
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g} {letter}{words}"
    return f"{value:.3g} {words}".strip()


def named(query: Query, series: Series) -> str:
    text = query.name
    for label, value in series["metric"].items():
        text = text.replace(f"{{{{{label}}}}}", value)
    return text


def points(series: Series) -> list[tuple[float, float]]:
    return [(float(t), float(v)) for t, v in series["values"] if math.isfinite(float(v))]


def chart(panel: Panel, lines: list[tuple[str, list[tuple[float, float]]]]) -> str:
    """Return lines, or areas on top of each other, as SVG with a legend."""
    times = sorted({t for _, line in lines for t, _ in line})
    if panel.kind is Kind.STACK:
        below = dict.fromkeys(times, 0.0)
        stacked = []
        for name, line in lines:
            own = dict(line)
            below = {t: below[t] + own.get(t, 0.0) for t in times}
            stacked.append((name, list(below.items())))
        lines = stacked
    (width, height), (left, right, top, bottom) = _CHART, _MARGIN
    limits = [] if panel.red_above in (None, 0) else [panel.red_above or 0.0]
    most = max([v for _, line in lines for _, v in line] + [0.0])
    most = max([most, *(limit for limit in limits if limit < 2 * most)]) * 1.08 or 1.0
    since, until = times[0], max(times[-1], times[0] + 1)

    def place(t: float, v: float) -> str:
        x = left + (t - since) / (until - since) * (width - left - right)
        return f"{x:.1f},{height - bottom - v / most * (height - top - bottom):.1f}"

    parts = []
    for share in (0.0, 0.5, 1.0):
        x, _, y = place(until, share * most).partition(",")
        parts.append(f'<path d="M{left},{y}H{x}" stroke="#e4e5e8"/>')
        label = said(share * most, panel.unit)
        parts.append(f'<text x="{left - 4}" y="{y}" dy="4" text-anchor="end" font-size="10">{label}</text>')
    for limit in (limit for limit in limits if limit <= most):
        x, _, y = place(until, limit).partition(",")
        parts.append(f'<path d="M{left},{y}H{x}" stroke="#c4162a" stroke-dasharray="5 4"/>')
    keys = []
    for number, (name, line) in reversed(list(enumerate(lines))):
        colour = _COLOURS[number % len(_COLOURS)]
        path = " ".join(place(t, v) for t, v in line)
        if panel.kind is Kind.STACK:
            ends = f"{place(line[-1][0], 0)} {place(line[0][0], 0)}"
            parts.append(f'<polygon points="{path} {ends}" fill="{colour}" fill-opacity="0.75"/>')
        else:
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.4"/>')
        keys.insert(0, f'<span style="color:{colour}">&#9632; {html.escape(name)}</span>')
    box = f"0 0 {width} {height}"
    drawn = f'<svg viewBox="{box}" preserveAspectRatio="none">{"".join(parts)}</svg>'
    return f'{drawn}<div class="keys">{"".join(keys)}</div>'


def table(panel: Panel, found: list[list[Series]]) -> str:
    rows: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
    shared = {"namespace", "disagg_deployment"} if len(panel.queries) > 1 else None
    for query, series in zip(panel.queries, found, strict=True):
        for one in series:
            metric = one["metric"]
            key = tuple(sorted((k, v) for k, v in metric.items() if shared is None or k in shared))
            cells = rows.setdefault(key, {})
            rest = "/".join(v for k, v in sorted(metric.items()) if shared is not None and k not in shared)
            cells[query.name] = rest or said(float(one["values"][-1][1]), panel.unit)
    labels = [k for k, _ in next(iter(rows))]
    head = "".join(f"<th>{html.escape(name)}</th>" for name in (*labels, *(q.name for q in panel.queries)))
    lines = [
        "".join(
            f"<td>{html.escape(v)}</td>" for v in (*(v for _, v in key), *(c.get(q.name, "") for q in panel.queries))
        )
        for key, c in rows.items()
    ]
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"


def content(panel: Panel, found: list[list[Series]]) -> str:
    if not any(found):
        return f'<div class="none">{html.escape(panel.may_be_empty)}</div>'
    if panel.kind is Kind.TABLE:
        return table(panel, found)
    lines = [
        (named(query, one), points(one))
        for query, series in zip(panel.queries, found, strict=True)
        for one in series
        if points(one)
    ]
    if panel.kind is Kind.NUMBER:
        value = lines[0][1][-1][1]
        red = (panel.red_above is not None and value > panel.red_above) or (
            panel.red_below is not None and value < panel.red_below
        )
        return f'<div class="number{" red" if red else ""}">{said(value, panel.unit)}</div>'
    return chart(panel, lines)


def page(board: Board, kept: dict[str, list[list[Series]]]) -> str:
    """Return a whole dashboard as HTML without anything from elsewhere."""
    parts = [f"<h1>{html.escape(board.title)}</h1><p>{html.escape(board.description)}</p>"]
    for row in board.rows:
        panels = []
        for panel, x, y in lay_out(row):
            place = f"grid-column:{x + 1}/span {panel.width};grid-row:{y + 1}/span {panel.height}"
            inner = content(panel, kept.get(f"{board.name}/{panel.title}", []))
            title = html.escape(panel.title)
            panels.append(f'<div class="panel" style="{place}"><h3>{title}</h3>{inner}</div>')
        parts.append(f'<h2>{html.escape(row.title)}</h2><div class="row">{"".join(panels)}</div>')
    return f'<!doctype html><meta charset="utf-8"><style>{_STYLE}</style><body>{"".join(parts)}</body>\n'


def height_px(board: Board) -> int:
    """Return how tall the page of a dashboard is."""
    lines = sum(max(y + panel.height for panel, _, y in lay_out(row)) for row in board.rows)
    return 90 + 34 * len(board.rows) + lines * (_LINE_PX + 6)


def main() -> None:
    kept = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    for board in boards():
        (folder / f"{board.name}.html").write_text(page(board, kept), encoding="utf-8")
        print(
            f"chromium --headless --screenshot={board.name}.png --window-size=1590,{height_px(board)} {board.name}.html"
        )


if __name__ == "__main__":
    main()
