"""The protocol of every measured engine.

Each is a process that reads requests as lines of JSON from stdin and answers on its original
stdout. Only the standard library is used here, because the other engines run this in environments
of their own.
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
    """An engine with one thread and one model that decodes greedily.

    A timing is a list of (wall seconds, processor seconds), one for each step.
    """

    def prefill(self, prompt: list[int]) -> list[tuple[float, float]]:
        """Run one step: from the prompt to its first token."""

    def decode(self, prompts: list[list[int]], steps: int) -> list[tuple[float, float]]:
        """Run `steps` steps, each of which generates one more token of every prompt.

        The computation of the prompts does not count.
        """

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        """Return the likeliest continuation."""

    def facts(self) -> dict[str, Any]:
        """Return versions, and facts about the last timing that only this engine knows."""


def now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


def between(marks: list[tuple[float, float]]) -> list[tuple[float, float]]:
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(marks)]


def prompts(batch: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    """Return random tokens, so that there is nothing to find in a prefix cache."""
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
    """Answer requests until stdin ends.

    The arguments of the process are the model, and options as JSON. It prints `null` when the model
    is loaded.
    """
    # The output of libraries must not mix with the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    engine = make(sys.argv[1], json.loads(sys.argv[2]))
    print("null", file=answers, flush=True)
    for line in sys.stdin:
        print(json.dumps(_answer(engine, json.loads(line))), file=answers, flush=True)
    # Some libraries wait forever when they are shut down in order.
    answers.close()
    os._exit(0)
