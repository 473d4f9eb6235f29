"""Draw a package as a house: its files and folders are rooms on floors, its imports are arrows.

    python scripts/draw_house.py disagg_operator --out docs/house/operator.svg [--wheel WHEEL]

A room is one floor above the highest room that it imports; rooms that import each other in a circle
share a floor. `--wheel` draws the package of a release, such as
tests/releases/0.1.0/disagg-0.1.0-py3-none-any.whl. `make drawings` draws all packages of today, and
the operator as it was in release 0.1.0.
"""

from __future__ import annotations

import argparse
import html
import sys
import tempfile
import zipfile
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import grimp

WIDTH_PX, FLOOR_PX, ROOM_PX, MARGIN_PX = 1180, 92, 40, 24
LABEL_PX, LETTER_PX = 70, 7.6
UP, DOWN = "#c0392b", "#8aa4c8"


@dataclass(frozen=True, slots=True)
class House:
    """The rooms of a package, by floor from the ground up, and the arrows between them."""

    package: str
    floors: list[list[str]]
    arrows: list[tuple[str, str]]
    lines: dict[str, int]

    def floor_of(self, room: str) -> int:
        """Return the floor of a room, 0 for the ground."""
        return next(i for i, rooms in enumerate(self.floors) if room in rooms)

    def summary(self) -> str:
        """Return the size of the house in one sentence."""
        rooms, circles = sum(map(len, self.floors)), self.in_circles()
        tail = f", {len(circles)} rooms in circles" if circles else ", no circle"
        return f"{self.package}: {rooms} rooms on {len(self.floors)} floors, {len(self.arrows)} arrows{tail}"

    def in_circles(self) -> set[str]:
        """Return the rooms that import each other in a circle."""
        return {room for a, b in self.arrows if self.floor_of(a) <= self.floor_of(b) for room in (a, b)}


def measured(package: str) -> House:
    """Return the house of an importable package, from the imports of its modules."""
    graph = grimp.build_graph(package, cache_dir=None)
    arrows: set[tuple[str, str]] = set()
    lines: dict[str, int] = defaultdict(int)
    root = Path(sys.modules[package].__file__ or "").parent if package in sys.modules else _root(package)
    for module in graph.modules:
        room = _room(package, module)
        if room is None:
            continue
        lines[room] += _lines(root, module.removeprefix(f"{package}."))
        for imported in graph.find_modules_directly_imported_by(module):
            other = _room(package, imported)
            if other is not None and other != room:
                arrows.add((room, other))
    return House(package, _floors(set(lines), arrows), sorted(arrows), dict(lines))


def _root(package: str) -> Path:
    return next(Path(folder) / package for folder in sys.path if (Path(folder) / package).is_dir())


def _room(package: str, module: str) -> str | None:
    return None if module == package else module.removeprefix(f"{package}.").partition(".")[0]


def _lines(root: Path, module: str) -> int:
    path = root.joinpath(*module.split("."))
    file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
    return file.read_text(encoding="utf-8").count("\n") if file.is_file() else 0


def _floors(rooms: set[str], arrows: set[tuple[str, str]]) -> list[list[str]]:
    """Return the rooms by floor: a circle counts as one room of the graph."""
    below = defaultdict(set)
    for a, b in arrows:
        below[a].add(b)

    def reach(room: str) -> set[str]:
        seen: set[str] = set()
        todo = [room]
        while todo:
            for other in below[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        return seen

    reached = {room: reach(room) for room in rooms}
    circle = {room: {other for other in reached[room] if room in reached[other]} | {room} for room in rooms}
    level: dict[str, int] = {}

    def height(room: str) -> int:
        if room not in level:
            outside = {other for member in circle[room] for other in below[member]} - circle[room]
            level[room] = 1 + max((height(other) for other in outside), default=-1)
        return level[room]

    floors: list[list[str]] = [[] for _ in range(1 + max(map(height, rooms)))]
    for room in sorted(rooms):
        floors[height(room)].append(room)
    return floors


def drawn(house: House) -> str:
    """Return the house as SVG: the top floor first, arrows that run up in red."""
    height = len(house.floors) * FLOOR_PX + 2 * MARGIN_PX + 30
    center: dict[str, tuple[float, float]] = {}
    boxes: list[str] = []
    for number, rooms in enumerate(reversed(house.floors)):
        y = MARGIN_PX + 30 + number * FLOOR_PX
        boxes.append(f'<text x="8" y="{y + 25}" class="floor">floor {len(house.floors) - number}</text>')
        widths = [max(64.0, LETTER_PX * len(room) + 18) for room in rooms]
        gap = (WIDTH_PX - LABEL_PX - sum(widths)) / (len(rooms) + 1)
        x = LABEL_PX + gap
        for room, width in zip(rooms, widths, strict=True):
            center[room] = (x + width / 2, y + ROOM_PX / 2)
            boxes.append(
                f'<g><rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{ROOM_PX}" rx="5"/>'
                f'<text x="{x + width / 2:.1f}" y="{y + 17}" class="room">{html.escape(room)}</text>'
                f'<text x="{x + width / 2:.1f}" y="{y + 32}" class="lines">{house.lines[room]} lines</text></g>'
            )
            x += width + gap
    lines = [_arrow(center[a], center[b], house.floor_of(a) > house.floor_of(b)) for a, b in house.arrows]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {height}" font-family="sans-serif">',
            "<style>rect{fill:#fff;stroke:#34495e;stroke-width:1.2}.room{font-size:13px;text-anchor:middle;fill:#111}"
            ".lines{font-size:10px;text-anchor:middle;fill:#777}.floor{font-size:11px;fill:#777}"
            ".title{font-size:15px;font-weight:bold;fill:#111}line{stroke-width:1}</style>",
            f'<rect x="0" y="0" width="{WIDTH_PX}" height="{height}" style="fill:#fafafa;stroke:none"/>',
            f'<text x="8" y="26" class="title">{html.escape(house.summary())}</text>',
            *lines,
            *boxes,
            "</svg>\n",
        ]
    )


def _arrow(start: tuple[float, float], end: tuple[float, float], down: bool) -> str:
    (x1, y1), (x2, y2) = start, end
    edge = ROOM_PX / 2 if y2 > y1 else -ROOM_PX / 2
    color, opacity = (DOWN, 0.55) if down else (UP, 0.9)
    return (
        f'<line x1="{x1:.1f}" y1="{y1 + edge:.1f}" x2="{x2:.1f}" y2="{y2 - edge:.1f}" '
        f'style="stroke:{color};stroke-opacity:{opacity}"/>'
    )


def main() -> None:
    """Draw one package, of the working tree or of a wheel."""
    parser = argparse.ArgumentParser(description="Draw a package's rooms, floors and imports as SVG.")
    parser.add_argument("package")
    parser.add_argument("--wheel", type=Path, help="a wheel that holds the package, instead of the working tree")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if args.wheel is not None:
            with zipfile.ZipFile(args.wheel) as wheel:
                wheel.extractall(folder)
            sys.path.insert(0, folder)
        house = measured(args.package)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(drawn(house), encoding="utf-8")
    print(house.summary())


if __name__ == "__main__":
    main()
