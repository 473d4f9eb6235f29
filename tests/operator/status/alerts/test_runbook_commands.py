"""Tests that what the runbooks grep for in metrics is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.wire import registries

REPO = Path(__file__).parents[4]
_COMMAND = re.compile(r"pods/((?:[A-Z]+-)?POD):(\d+)/proxy/metrics \| grep -E '(.*?)'")
PROCESSES = {"ROUTER-POD": ("router", 8080), "OPERATOR-POD": ("operator", 8081)}
FOUND = [
    (page.stem, *match)
    for page in sorted((REPO / "docs/runbooks").glob("*.md"))
    for match in _COMMAND.findall(page.read_text())
]


def alternatives(pattern: str) -> list[str]:
    """Return what a pattern has at its top level."""
    parts, depth = [""], 0
    for char in pattern:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "|" and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def test_there_are_such_commands() -> None:
    assert len(FOUND) >= 20


@pytest.mark.parametrize(("page", "pod", "port", "pattern"), FOUND)
def test_each_part_of_a_pattern_is_in_the_metrics_of_that_process(page: str, pod: str, port: str, pattern: str) -> None:
    process, expected_port = PROCESSES.get(pod, ("worker", 8000))
    assert int(port) == expected_port
    names = registries.series(registries.PROCESSES[process]())
    for part in alternatives(pattern):
        assert any(re.search(part, name) for name in names), f"{page}: {part}"
