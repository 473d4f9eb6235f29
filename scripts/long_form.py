"""Write a page about the last run of a long form of the tests.

Usage: long_form.py JUNIT_XML PAGE TITLE COMMAND   (`make test-engines`)
"""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import machine  # noqa: E402  (the path above comes first)


@dataclass(frozen=True)
class Case:
    """One test of a run."""

    name: str
    seconds: float
    result: str
    measured: tuple[tuple[str, str], ...] = ()
    """What the test has recorded, as (name, value)."""


def cases(report: str) -> list[Case]:
    """Return the tests in a report in JUnit's format, which pytest has written itself."""
    out = []
    for case in ET.fromstring(report).iter("testcase"):
        kinds = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        name = f"{case.get('classname', '').rpartition('.')[2]}: {case.get('name', '').removeprefix('test_')}"
        measured = tuple((p.get("name", ""), p.get("value", "")) for p in case.iter("property"))
        out.append(Case(name.replace("_", " "), float(case.get("time", 0)), kinds[0] if kinds else "passed", measured))
    return out


def page(title: str, command: str, found: list[Case], where: str, day: str) -> str:
    """Return the page in Markdown."""
    passed = sum(case.result == "passed" for case in found)
    rows = [f"| {case.name} | {case.result} | {case.seconds:.0f} |" for case in found]
    lines = [
        f"# {title}",
        "",
        f"`{command}`, {day}, {where}: {passed} of {len(found)} passed.",
        "",
        "| test | result | s |",
        "|---|---|---|",
        *rows,
    ]
    for case in found:
        if case.measured:
            lines += ["", f"{case.name}:", "", *(f"- {name}: {value}" for name, value in case.measured)]
    return "\n".join(lines) + "\n"


def main() -> None:
    report, target, title, command = sys.argv[1:]
    found = cases(Path(report).read_text(encoding="utf-8"))
    day = datetime.now(UTC).date().isoformat()
    Path(target).write_text(page(title, command, found, machine(), day), encoding="utf-8")


if __name__ == "__main__":
    main()
