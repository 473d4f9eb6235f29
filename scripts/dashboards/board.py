"""The form of a dashboard, without anything of the programs that show it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

WIDTH = 24
"""The columns of a dashboard."""
NAMESPACE, DEPLOYMENT = "namespace", "deployment"


class Kind(Enum):
    """How a panel shows its series."""

    LINES = "lines"
    STACK = "stack"
    """Areas on top of each other, whose sum matters."""
    NUMBER = "number"
    TABLE = "table"
    """A row for each set of labels, a column for each query."""


class Unit(Enum):
    """What the values of a panel are."""

    SECONDS = "seconds"
    BYTES = "bytes"
    BYTES_PER_S = "bytes per second"
    SHARE = "share"
    """From 0 to 1, shown in percent."""
    NUMBER = "number"
    REQUESTS_PER_S = "requests per second"
    TOKENS_PER_S = "tokens per second"
    EVENTS_PER_S = "events per second"
    TIME = "seconds since 1970"


@dataclass(frozen=True, slots=True)
class Query:
    """A query in PromQL, and the name of its series or of its column in a table."""

    expression: str
    name: str


@dataclass(frozen=True, slots=True)
class Panel:
    """A panel, and what whoever looks at it should know."""

    title: str
    description: str
    unit: Unit
    queries: tuple[Query, ...]
    kind: Kind = Kind.LINES
    width: int = 8
    height: int = 8
    red_above: float | None = None
    red_below: float | None = None
    may_be_empty: str = ""
    """Why it may have nothing to show although requests are served, if that is so."""


@dataclass(frozen=True, slots=True)
class Row:
    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top of a dashboard: the values of a label of a series."""

    name: str
    label: str
    series: str
    several: bool = False
    """Whether several or all values can be chosen."""


@dataclass(frozen=True, slots=True)
class Board:
    """A dashboard."""

    name: str
    """Of its files, and its id in both programs."""
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: tuple[Row, ...]
    events: Query | None = None
    """What is marked on the axis of time of all panels; its name is the text of a mark."""

    @property
    def panels(self) -> tuple[Panel, ...]:
        return tuple(panel for row in self.rows for panel in row.panels)


def lay_out(row: Row) -> list[tuple[Panel, int, int]]:
    """Return the panels of a row with their columns and their lines below its title."""
    placed, x, y, tallest = [], 0, 0, 0
    for panel in row.panels:
        if x + panel.width > WIDTH:
            x, y, tallest = 0, y + tallest, 0
        placed.append((panel, x, y))
        x, tallest = x + panel.width, max(tallest, panel.height)
    return placed


def row_height(row: Row) -> int:
    return max(y + panel.height for panel, _, y in lay_out(row))
