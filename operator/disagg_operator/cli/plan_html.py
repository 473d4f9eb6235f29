"""The HTML report of a plan, with tables and plots, in one file without external resources."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from disagg_operator.cli import plots
from disagg_operator.planning import report
from disagg_operator.planning.deployment_plan import Deployment, Plan

_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;color:#1f2328;margin:2.5em auto;max-width:1080px;padding:0 1.5em}
h1{font-size:1.6em;margin:0}h2{font-size:1.1em;margin:2em 0 .5em}
.verdict{font-size:1.15em;font-weight:600;background:#eef4ff;border-left:4px solid #1f6feb;\
padding:.7em 1em;margin:1em 0}
.verdict.bad{background:#fff1ee;border-color:#cf222e}
table{border-collapse:collapse;margin:.3em 0}\
th,td{padding:.3em .9em;text-align:right;border-bottom:1px solid #d8dee4;white-space:nowrap}
th{font-weight:600;color:#57606a;font-size:.88em}th:first-child,td:first-child{text-align:left;padding-left:0}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.15em 1.5em;margin:1em 0}dt{color:#57606a}dd{margin:0}
.plots{display:grid;grid-template-columns:1fr 1fr;gap:1em 2em;margin-top:2em}.plots svg{width:100%;height:auto}
ul{padding-left:1.2em}@media(max-width:800px){.plots{grid-template-columns:1fr}}
"""


def write(path: Path, plan: Plan) -> None:
    """Write the report of a plan to a file."""
    path.write_text(render(plan), encoding="utf-8")


def render(plan: Plan) -> str:
    """Return the report of a plan as an HTML document."""
    q = plan.question
    title = f"{q.model.name} at {q.traffic.requests_per_s:.4g} requests/s"
    verdict = "verdict" if plan.chosen else "verdict bad"
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        f'<p class="{verdict}">{html.escape(report.headline(plan))}</p>',
        "<dl>"
        + "".join(f"<dt>{html.escape(k)}</dt><dd>{html.escape(v)}</dd>" for k, v in report.question_rows(plan))
        + "</dl>",
        "<h2>In two pools, or in one</h2>",
        _table(report.DEPLOYMENT_COLUMNS, [report.deployment_row(plan, name, d) for name, d in report.both(plan)]),
    ]
    for name, d in report.both(plan):
        if isinstance(d, Deployment):
            parts += [
                f"<h2>{name.capitalize()}</h2>",
                _table(report.POOL_COLUMNS, [report.pool_row(p, d.chunk_tokens) for p in d.pools]),
            ]
    parts += [
        "<h2>KV transfer</h2>",
        _table(report.TRANSFER_COLUMNS, report.transfers(plan)),
        '<div class="plots">' + "".join(f"<figure>{svg}</figure>" for svg in plots.plan_pictures(plan)) + "</div>",
        "<h2>Notes</h2><ul>" + "".join(f"<li>{html.escape(n)}</li>" for n in report.notes(plan)) + "</ul>",
    ]
    style = f"<style>{_STYLE}figure{{margin:0}}</style>"
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>{style}'
    return f"{head}{''.join(parts)}</html>\n"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
