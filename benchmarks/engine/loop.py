"""What every measured engine does: one process each, asked by lines of JSON on stdin, answering on
what was its stdout.

Only the standard library is used here: peers run this in environments of their own.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Protocol


class Engine(Protocol):
    """One thread, one model, greedy.

    A timing is a list of (wall seconds, processor seconds), one a step.
    """

    def prefill(self, prompt: list[int]) -> list[tuple[float, float]]:
        """One step: from the prompt to its first token."""

    def decode(self, prompts: list[list[int]], steps: int) -> list[tuple[float, float]]:
        """`steps` steps that each make one more token of every prompt; computing the prompts is not
        counted.
        """

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        """The likeliest continuation."""

    def facts(self) -> dict[str, Any]:
        """Versions, and what only this engine knows of its last timing."""


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def between(marks: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)]


def prompts(batch: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Random tokens: nothing to find in a prefix cache."""
    draw = random.Random(seed)
    return [[draw.randrange(1, vocabulary) for _ in range(length)] for _ in range(batch)]


def _answer(engine: Engine, ask: dict[str, Any]) -> Any:
    if ask["do"] == "facts":
        return engine.facts()
    if ask["do"] == "greedy":
        return engine.greedy(ask["prompt"], ask["tokens"])
    made = prompts(ask.get("batch", 1), ask["context"], ask["vocabulary"], ask["seed"])
    if ask["do"] == "prefill":
        return engine.prefill(made[0])
    return engine.decode(made, ask["steps"])


def serve(make: Callable[[str, dict[str, Any]], Engine]) -> None:
    """argv: the model, and options as JSON. Says `null` when the model is loaded."""
    # What libraries print must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = make(sys.argv[1], json.loads(sys.argv[2]))
    print("null", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(engine, json.loads(line))), file=answers, flush=True)
    # Some libraries wait for ever when they are taken down in order.
    answers.close()
    os._exit(0)
