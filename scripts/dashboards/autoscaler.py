"""The dashboard of the autoscaler."""

from __future__ import annotations

from scripts.dashboards.board import Board, Kind, Panel, Query, Row, Unit
from scripts.dashboards.promql import OF_ONE, highest, legend, of_one, total

from disagg_wire import series as s

_POOL = legend(s.POOL)


def _pools() -> Row:
    pods = of_one(s.POOL_PODS)
    return Row(
        "Replicas",
        (
            Panel("Wanted and set", "Replicas as decided, and as set after budgets and limits.", Unit.NUMBER,
                  (Query(highest(of_one(s.AUTOSCALER_WANTED_REPLICAS), s.POOL), f"{_POOL} wanted"),
                   Query(highest(of_one(s.AUTOSCALER_REPLICAS), s.POOL), f"{_POOL} set"))),
            Panel("Pods", "Pods of each pool by state, and how many there should be.", Unit.NUMBER,
                  (Query(highest(pods, s.POOL, s.STATE), f"{_POOL} {legend(s.STATE)}"),)),
            Panel("Work", "Forecast work in workers, or requests per replica, as the pool's policy counts.",
                  Unit.NUMBER, (Query(highest(of_one(s.AUTOSCALER_SIGNAL), s.POOL), _POOL),)),
        ),
    )  # fmt: skip


def _decisions() -> Row:
    scalings = f"sum by ({s.POOL}, {s.DIRECTION}) (increase({of_one(s.OPERATOR_SCALINGS)}[1h]))"
    return Row(
        "Decisions",
        (
            Panel("Numbers of the last decision", "What it was made by: demand, forecast, capacity and the rest, by"
                  " the names that `disagg explain` shows.", Unit.NUMBER,
                  (Query(highest(of_one(s.AUTOSCALER_NUMBER), s.POOL, s.NAME), f"{_POOL} {legend(s.NAME)}"),),
                  width=12),
            Panel("Forecast errors", "The range in which what came has been, as a share of what was forecast: 1 is"
                  " as forecast.", Unit.NUMBER,
                  (Query(highest(of_one(s.AUTOSCALER_NUMBER, 'name=~"error_(low|high)"'), s.POOL, s.NAME),
                         f"{_POOL} {legend(s.NAME)}"),), width=12),
            Panel("Scalings", "Decisions carried out in the last hour, up and down. Many of both are to and fro.",
                  Unit.NUMBER, (Query(scalings, f"{_POOL} {legend(s.DIRECTION)}"),), width=6),
            Panel("At a limit", "1 while a pool stands at a limit, or cannot meet its objective at any size.",
                  Unit.NUMBER,
                  (Query(highest(of_one(s.AUTOSCALER_LIMITED), s.POOL, s.LIMIT), f"{_POOL} {legend(s.LIMIT)}"),),
                  width=6, red_above=0.5),
            Panel("Blind", "1 while a pool is held for want of metrics.", Unit.NUMBER,
                  (Query(highest(of_one(s.AUTOSCALER_BLIND), s.POOL), _POOL),), width=6, red_above=0.5),
            Panel("Failed steps", "Steps of the autoscaler that a bug ended, in the last hour.", Unit.NUMBER,
                  (Query(f"sum(increase({of_one(s.AUTOSCALER_FAILURES)}[1h])) or vector(0)", "failures"),), Kind.NUMBER,
                  6, red_above=0.5),
            Panel("Zero", "Times that both pools went to zero and woke, in the last hour.", Unit.NUMBER,
                  (Query(total(f"increase({of_one(s.OPERATOR_ZEROS)}[1h])"), "to zero"),
                   Query(total(f"increase({of_one(s.OPERATOR_WAKES)}[1h])"), "woken")), width=6,
                  may_be_empty="only pools that may go to zero have it"),
        ),
    )  # fmt: skip


def board() -> Board:
    scalings = of_one(s.OPERATOR_SCALINGS)
    return Board(
        "disagg-autoscaler",
        "disagg / Autoscaler",
        "What the autoscaler wants, what it has set, by which numbers, and which limits it stands at.",
        OF_ONE,
        (_pools(), _decisions()),
        Query(f"sum by ({s.POOL}, {s.DIRECTION}) (changes({scalings}[1m])) > 0", f"{_POOL} {legend(s.DIRECTION)}"),
    )
