"""HTML pages with tables and charts, in one file that loads nothing from elsewhere.

The charts are drawn by uPlot (github.com/leeoniya/uPlot, MIT licence), which is bundled: a pointer
shows the values, a drag zooms. The page follows the reader's choice of a light or dark scheme.
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from disagg_wire.version import VERSION

BLUE, ORANGE, GREEN, RED, PURPLE, TEAL, GREY = (
    "#3b82f6", "#e8590c", "#2f9e44", "#e03131", "#9c36b5", "#0c8599", "#868e96",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, GREY)
"""Colours of series, which are legible on light and on dark paper."""

_ASSETS = Path(__file__).parent / "assets"
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Axis:
    """An axis of a chart."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """A line of a chart."""

    label: str
    values: Sequence[float]
    """One value for each x; those that are not finite leave a gap."""
    colour: str
    dashed: bool = False
    stepped: Literal[-1, 0, 1] = 0
    """1: the value holds until the next x; -1: it has held since the previous one; 0: slanted."""


@dataclass(frozen=True, slots=True)
class Guide:
    """A dashed line with a label across a chart."""

    axis: Literal["x", "y"]
    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart. Those of a group show the same x at the same time."""

    title: str
    x: Axis
    y: Axis
    at: Sequence[float]
    series: Sequence[Series]
    lines: Sequence[Guide] = ()
    group: str = ""
    height: int = 280


@dataclass(frozen=True, slots=True)
class Made:
    """The way in which a page was made."""

    command: str
    profiles: Sequence[str] = field(default_factory=tuple)
    """The profiles that were used, in words."""


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, which scrolls where it is wider than the page."""
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="table"><table><tr>{head}</tr>{body}</table></div>'


def bullets(sentences: Iterable[str]) -> str:
    """Return a list of sentences."""
    return "<ul>" + "".join(f"<li>{html.escape(s)}</li>" for s in sentences) + "</ul>"


def definitions(rows: Iterable[tuple[str, str]]) -> str:
    """Return a list of labels and values."""
    return "<dl>" + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in rows) + "</dl>"


def page(title: str, before: str, charts: Sequence[Chart], after: str, made: Made, wide: bool = False) -> str:
    """Return a page with charts between two parts of HTML. If `wide`, each chart has a row."""
    profiles = "".join(f"<br>profile: {html.escape(p)}" for p in made.profiles)
    boxes = "".join(f'<div id="chart-{i}"></div>' for i in range(len(charts)))
    return "".join(
        (
            f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{_asset('uPlot.min.css')}{_asset('page.css')}</style>",
            f'<button id="theme" type="button">light / dark</button><h1>{html.escape(title)}</h1>',
            before,
            '<p class="hint">Charts: drag to zoom, double-click to see everything, click a name to hide it.</p>'
            if charts
            else "",
            f'<div class="charts{" wide" if wide else ""}">{boxes}</div>{after}',
            f"<footer>disagg {html.escape(VERSION)}<br><code>{html.escape(made.command)}</code>{profiles}</footer>",
            f'<script type="application/json" id="charts">{_data(charts)}</script>',
            f"<script>{_asset('uPlot.iife.min.js')}</script><script>{_asset('charts.js')}</script></html>\n",
        )
    )


@cache
def _asset(name: str) -> str:
    return (_ASSETS / name).read_text(encoding="utf-8")


def _data(charts: Sequence[Chart]) -> str:
    """Return the charts as JSON that can stand in a script element."""
    raw = [
        {
            "title": c.title, "x": asdict(c.x), "y": asdict(c.y), "group": c.group, "height": c.height,
            "lines": [asdict(line) for line in c.lines],
            "series": [
                {"label": s.label, "colour": s.colour, "dashed": s.dashed, "stepped": s.stepped} for s in c.series
            ],
            "data": [_numbers(c.at), *(_numbers(s.values) for s in c.series)],
        }
        for c in charts
    ]  # fmt: skip
    return json.dumps(raw, allow_nan=False, separators=(",", ":")).replace("</", "<\\/")


def _numbers(values: Sequence[float]) -> list[float | None]:
    return [float(f"{v:.{_DIGITS}g}") if math.isfinite(v) else None for v in values]
