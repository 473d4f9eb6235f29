"""The files of all dashboards in the chart."""

from __future__ import annotations

from pathlib import Path

from scripts.dashboards import grafana, perses
from scripts.dashboards.every import boards

FOLDER = Path(__file__).resolve().parents[2] / "helm/disagg/dashboards"


def dashboard_files() -> dict[Path, str]:
    """Return each dashboard for Grafana and for Perses."""
    found = {}
    for board in boards():
        found[FOLDER / "grafana" / f"{board.name}.json"] = grafana.as_text(board)
        found[FOLDER / "perses" / f"{board.name}.json"] = perses.as_text(board)
    return found
