"""Readers of the recordings of release 0.1.0."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RELEASE = Path(__file__).parent / "0.1.0"
CORPUS = tuple(sorted(path.stem for path in (RELEASE / "corpus").glob("*.yaml")))
Obj = dict[str, Any]


def load(path: str) -> Any:
    """Return the content of a JSON file of the release."""
    return json.loads((RELEASE / path).read_text())


def load_lines(path: str) -> list[Any]:
    """Return the content of a file of JSON lines."""
    return [json.loads(line) for line in (RELEASE / path).read_text().splitlines()]


def resource(name: str) -> Obj:
    """Return a resource of the corpus."""
    found: Obj = yaml.safe_load((RELEASE / "corpus" / f"{name}.yaml").read_text())
    return found


def plain(value: Any) -> Any:
    """Return the value as JSON gives it back."""
    return json.loads(json.dumps(value))


def exact(value: Any) -> Any:
    """Return the value as JSON has it, with the numbers that JSON lacks as text."""
    if isinstance(value, dict):
        return {key: exact(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [exact(v) for v in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def keys(value: Any) -> Any:
    """Return the names in a message without its values."""
    if isinstance(value, dict):
        return {key: keys(v) for key, v in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [keys(value[0])]
    return None


@dataclass(frozen=True)
class Exchange:
    """A call and its answer as they were transmitted."""

    server: str
    """The process that answered: "router", "prefill" or "decode"."""
    method: str
    """The HTTP method."""
    path: str
    """The path of the URL."""
    request: str
    """The body of the request."""
    status: int
    """The HTTP status of the answer."""
    response: str
    """The body of the answer."""

    @property
    def body(self) -> Obj:
        found: Obj = json.loads(self.request)
        return found

    @property
    def answer(self) -> Any:
        return json.loads(self.response)

    @property
    def lines(self) -> list[Obj]:
        """The events of a worker's stream."""
        return [json.loads(line) for line in self.response.splitlines()]


EXCHANGES = tuple(Exchange(**e) for e in load_lines("messages/exchanges.jsonl"))


def exchanges(path: str, *statuses: int, server: str | None = None) -> list[Exchange]:
    """Return the exchanges of one call, with one of these statuses or with any."""
    found = [e for e in EXCHANGES if e.path == path and (server is None or e.server == server)]
    return [e for e in found if not statuses or e.status in statuses]
