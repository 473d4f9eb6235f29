"""All dashboards."""

from __future__ import annotations

from scripts.dashboards import autoscaler, deployment, engine, fleet, operator, transfers
from scripts.dashboards.board import Board


def boards() -> list[Board]:
    return [module.board() for module in (fleet, deployment, transfers, autoscaler, engine, operator)]
