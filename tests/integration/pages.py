"""The fenced blocks of the pages of the documentation, as they stand there."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.integration.apiserver import REPO

_FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CONSOLE, YAML = "console", "yaml"


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    """The number of the line where it begins."""
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, language: str | None = None) -> list[Block]:
    """Return the blocks of a page, all or those in one language, in order."""
    text = (REPO / page).read_text()
    found = [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2]) for match in _FENCED.finditer(text)
    ]
    return [block for block in found if language in (None, block.language)]


def commands(page: str) -> list[str]:
    """Return the commands of a page, in order."""
    return [line.removeprefix("$ ") for block in blocks(page, CONSOLE) for line in block.text.splitlines()]
