"""Every query of every dashboard, asked of a real Prometheus that scrapes real processes."""

from __future__ import annotations

import asyncio
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from scripts.dashboards.board import NAMESPACE, Board, Kind, Panel
from scripts.dashboards.every import boards
from tests.integration.apiserver import ApiServer
from tests.integration.observed import OPERATOR, Observed, Plan, observed
from tests.integration.operator_process import Cluster

from disagg_operator.status.alerts import rule_file

pytestmark = [pytest.mark.apiserver, pytest.mark.slow, pytest.mark.long]
LOAD_S = 15.0
# A busy machine misses scrapes.
WAIT_S = 20.0
SCALED = {role: {"autoscaling": {"minReplicas": 1, "maxReplicas": 2}} for role in ("prefill", "decode")}
# What the panels found is kept in this folder, and Prometheus's data, for pictures.
KEEP = os.environ.get("DASHBOARDS_KEEP", "")


def chosen(board: Board, namespace: str) -> str:
    """Return the namespace that somebody would choose on a dashboard."""
    variable = next(v for v in board.variables if v.name == NAMESPACE)
    return ".*" if variable.several else OPERATOR if "operator" in variable.series else namespace


async def shown(one: Observed, board: Board, panel: Panel, since_s: float) -> list[list[dict[str, Any]]]:
    """Return what each query of a panel finds that is a number."""
    found = []
    for query in panel.queries:
        text = query.expression.replace("$__rate_interval", "3m").replace("$deployment", "chat")
        text = text.replace("$namespace", chosen(board, one.cluster.namespace))
        if panel.kind in (Kind.NUMBER, Kind.TABLE):
            rows = [{"metric": r["metric"], "values": [r["value"]]} for r in await one.ask(text)]
        else:
            rows = await one.over(text, since_s, time.time(), 1.0)
        numbers = [r for r in rows if any(math.isfinite(float(v)) for _, v in r["values"])]
        found.append(numbers)
    return found


async def found_in(one: Observed, board: Board, panel: Panel, since_s: float) -> list[list[dict[str, Any]]]:
    """Return what a panel shows, once each of its queries finds something if it must."""
    until_s = time.monotonic() + WAIT_S
    while True:
        found = await shown(one, board, panel, since_s)
        if all(found) or panel.may_be_empty or time.monotonic() > until_s:
            return found
        await asyncio.sleep(1)


async def test_every_panel_shows_something_under_load(server: ApiServer, cluster: Cluster, tmp_path: Path) -> None:
    empty, kept = [], {}
    async with (
        observed(cluster, server, tmp_path, Plan(rules=rule_file.as_text(), spec=SCALED)) as one,
        one.load() as became,
    ):
        since_s = time.time()
        await asyncio.sleep(float(os.environ.get("DASHBOARDS_LOAD_S", LOAD_S)))
        for board in boards():
            for panel in board.panels:
                found = await found_in(one, board, panel, since_s)
                kept[f"{board.name}/{panel.title}"] = found
                nothing = [q.name for q, rows in zip(panel.queries, found, strict=True) if not rows]
                if nothing and not panel.may_be_empty:
                    empty.append(f"{board.title}: {panel.title}: {', '.join(nothing)}")
        if KEEP:
            Path(KEEP).mkdir(parents=True, exist_ok=True)
            (Path(KEEP) / "panels.json").write_text(json.dumps(kept))
        assert sum(became) >= 5
    if KEEP:
        shutil.copytree(tmp_path / "tsdb", Path(KEEP) / "tsdb", dirs_exist_ok=True)
    assert not empty, "\n".join(empty)
