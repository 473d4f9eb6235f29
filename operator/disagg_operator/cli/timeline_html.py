"""The page of a simulation or a record: the course of time of all policies in the same charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from disagg_operator.cli import html_page, plots
from disagg_operator.cli.html_page import Axis, Chart, Guide, Made, Series
from disagg_operator.cli.plots import Timeline, windows

_GROUP = "time"
_GOAL = 99.0


def save(
    path: Path, title: str, timelines: Sequence[Timeline], made: Made, notes: Sequence[str] = (),
    columns: Sequence[str] = (), rows: Sequence[Sequence[str]] = (),
) -> None:  # fmt: skip
    """Write the course of time as a page, or that of one policy as a picture.

    The page has the table of `rows` and the notes above the charts.
    """
    if path.suffix.lower() not in plots.PAGES:
        plots.save(path, replace(timelines[0], title=f"{title}: {timelines[0].title}"))
        return
    before = (html_page.table(columns, rows) if rows else "") + html_page.bullets(notes)
    path.write_text(html_page.page(title, before, charts(timelines), "", made, wide=True), encoding="utf-8")


def charts(timelines: Sequence[Timeline]) -> list[Chart]:
    """Return the load, the queues, the workers and the objectives.

    Timelines with the same times are in the same charts; others have charts of their own.
    """
    found: list[Chart] = []
    left = list(timelines)
    while left:
        t_s = list(left[0].columns["t_s"])
        same = [t for t in left if list(t.columns["t_s"]) == t_s]
        found += _charts(same, f"{left[0].title}: " if len(same) < len(timelines) else "")
        left = [t for t in left if t not in same]
    return found


def _charts(timelines: Sequence[Timeline], title: str) -> list[Chart]:
    t_s = np.asarray(timelines[0].columns["t_s"], dtype=float)
    per, unit = (3600.0, "h") if len(t_s) and t_s[-1] > 7200 else (60.0, "min")
    x, at = Axis(f"time, {unit}"), (t_s / per).tolist()
    step_s = np.diff(t_s, prepend=0.0).clip(1e-9)
    first = timelines[0].columns
    load = [
        Series("prompt tokens/s", _per_s(first["prompt_tokens"], step_s), html_page.BLUE, stepped=-1),
        Series("output tokens/s", _per_s(first["generated_tokens"], step_s), html_page.ORANGE, stepped=-1),
    ]
    waiting = [
        Series(f"{name}waiting for {pool}", t.columns[column], colour, dashed=dashed)
        for name, t, prefill, decode in _named(timelines)
        for pool, column, (colour, dashed) in (
            ("prefill", "waiting_requests", prefill), ("decode", "decode_waiting", decode)
        )
    ]  # fmt: skip
    # Several policies in one chart only show what they want, for the number of lines.
    states = ("ready", "desired") if len(timelines) == 1 else ("desired",)
    workers = [
        Series(f"{name}{pool} {what}", t.columns[f"{pool}_{what}"], colour, dashed or what != states[0], stepped=1)
        for name, t, prefill, decode in _named(timelines)
        for pool, (colour, dashed) in (("prefill", prefill), ("decode", decode))
        for what in states
    ]
    return [
        Chart(f"{title}Load", x, Axis("tokens/s"), at, load, group=_GROUP),
        Chart(f"{title}Queues", x, Axis("requests"), at, waiting, group=_GROUP),
        Chart(f"{title}Workers", x, Axis("workers"), at, workers, group=_GROUP),
        _objectives(timelines, title, per, x),
    ]


def _objectives(timelines: Sequence[Timeline], title: str, per: float, x: Axis) -> Chart:
    """Return the shares within the objectives, of windows of five minutes."""
    found = []
    for name, t, prefill, decode in _named(timelines):
        for kind, (colour, dashed) in (("ttft", prefill), ("tpot", decode)):
            at, share = windows(_column(t, "t_s"), _column(t, f"{kind}_ok"), _column(t, f"{kind}_total"))
            found.append((f"{name}{kind.upper()}", colour, dashed, at, share))
    starts = sorted({float(s) for *_, at, _ in found for s in at})
    series = []
    for label, colour, dashed, at, share in found:
        known = dict(zip(at.tolist(), (100 * share).tolist(), strict=True))
        series.append(Series(label, [known.get(s, float("nan")) for s in starts], colour, dashed=dashed, stepped=1))
    low = min((v for s in series for v in s.values if v == v), default=0.0)
    y = Axis("%", low=max(0.0, min(low, _GOAL) - 1), high=100.3)
    name = f"{title}Within the objectives, in windows of five minutes"
    return Chart(name, x, y, [s / per for s in starts], series, [Guide("y", _GOAL, f"{_GOAL:g} %")], _GROUP)


def _named(timelines: Sequence[Timeline]) -> list[tuple[str, Timeline, tuple[str, bool], tuple[str, bool]]]:
    """Return each timeline with the beginning of its labels, and colour and dash of both pools.

    One policy has a colour for each pool; of several, each has one colour, and decode is dashed.
    """
    if len(timelines) == 1:
        return [("", timelines[0], (html_page.BLUE, False), (html_page.ORANGE, False))]
    colours = html_page.COLOURS
    return [
        (f"{t.title}: ", t, (colours[i % len(colours)], False), (colours[i % len(colours)], True))
        for i, t in enumerate(timelines)
    ]


def _column(timeline: Timeline, name: str) -> Any:
    return np.asarray(timeline.columns[name], dtype=float)


def _per_s(values: Sequence[float], step_s: Any) -> list[float]:
    found: list[float] = (np.asarray(values, dtype=float) / step_s).tolist()
    return found
