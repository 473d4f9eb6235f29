"""This project's engine, asked as the server asks it: queues, schedulers, sampler and sinks are in the time."""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import loop
from disagg_worker.engine.api import EndEvent, Event, SamplingParams, TokenEvent
from disagg_worker.engine.config import EngineConfig
from disagg_worker.engine.core import TorchEngine

_DEADLINE_S = 300.0


class Ours:
    """Implements loop.Engine."""

    def __init__(self, folder: str, options: dict[str, Any]) -> None:
        config = EngineConfig("bench", "both", prefill_wait_s=0.0, kv_cache_bytes=1 << 30, prefix_cache=False, **options)
        self._engine = TorchEngine(Path(folder), config)
        self._network_share = 0.0

    def _run(self, prompts: list[list[int]], tokens: int) -> tuple[list[tuple[float, float]], list[list[int]]]:
        """When each token of the first prompt came, and all tokens."""
        marks: list[tuple[float, float]] = []
        out: list[list[int]] = [[] for _ in prompts]
        ended: queue.Queue[Event] = queue.Queue()

        def sink(i: int, event: Event) -> None:
            if not isinstance(event, TokenEvent):
                ended.put(event)
                return
            out[i].append(event.token)
            if i == 0:
                marks.append(loop.now())

        before = self._engine.load().step_seconds_total
        for i, prompt in enumerate(prompts):
            sampling = SamplingParams(seed=1, max_new_tokens=tokens, temperature=0.0)
            self._engine.generate(f"r{i}", prompt, len(prompt), sampling, lambda event, i=i: sink(i, event))
        for _ in prompts:
            if not isinstance(end := ended.get(timeout=_DEADLINE_S), EndEvent):
                raise RuntimeError(f"a request failed: {end}")
        after = self._engine.load().step_seconds_total
        forward, rest = (after[k] - before[k] for k in ("forward", "rest"))
        self._network_share = forward / (forward + rest)
        return marks, out

    def prefill(self, prompt: list[int]) -> list[tuple[float, float]]:
        start = loop.now()
        marks, _ = self._run([prompt], 1)
        return loop.between([start, *marks])

    def decode(self, prompts: list[list[int]], steps: int) -> list[tuple[float, float]]:
        # Prompts are computed together, or one after another: the last joins at the latest when as many steps are done.
        marks, _ = self._run(prompts, steps + len(prompts) + 2)
        return loop.between(marks)[-steps - 1 : -1]

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        return self._run([prompt], tokens)[1][0]

    def facts(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "network_share": self._network_share}


if __name__ == "__main__":
    loop.serve(Ours)
