"""This project's engine, used in the same way as the server uses it.

The times include queues, schedulers, sampler and sinks.
"""

from __future__ import annotations

import queue
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import loop
from disagg_protocol.events import EndEvent, Event, TokenEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig

_DEADLINE_S = 300.0


class Ours:
    """The Engine of this project."""

    def __init__(self, folder: str, options: dict[str, Any]) -> None:
        config = EngineConfig(
            "bench", "both", prefill_wait_s=0.0, kv_cache_bytes=1 << 30, prefix_cache=False, **options
        )
        self._engine = TorchEngine(Path(folder), config)
        self._network_share = 0.0

    def _run(
        self, prompts: list[list[int]], tokens: int, steps: int
    ) -> tuple[list[tuple[float, float]], list[list[int]]]:
        """Return the marks of the first prompt, and all tokens.

        The marks are the time of the request and that of each token. The share of the network is
        that of the `steps` tokens before the last one.
        """
        marks = [loop.now()]
        network_s = [self._network_s()]
        out: list[list[int]] = [[] for _ in prompts]
        ended: queue.Queue[Event] = queue.Queue()

        def sink(i: int, event: Event) -> None:
            if not isinstance(event, TokenEvent):
                ended.put(event)
                return
            out[i].append(event.token)
            if i == 0:
                marks.append(loop.now())
                network_s.append(self._network_s() if len(marks) in (tokens - steps, tokens) or tokens == 1 else 0.0)

        for i, prompt in enumerate(prompts):
            sampling = SamplingParams(seed=1, max_new_tokens=tokens, temperature=0.0)
            self._engine.generate(f"r{i}", prompt, len(prompt), sampling, lambda event, i=i: sink(i, event))
        for _ in prompts:
            if not isinstance(end := ended.get(timeout=_DEADLINE_S), EndEvent):
                raise RuntimeError(f"a request failed: {end}")
        first, last = (0, 1) if tokens == 1 else (tokens - steps - 1, tokens - 1)
        if len(marks) > last:  # unless an end token came early
            self._network_share = (network_s[last] - network_s[first]) / (marks[last][0] - marks[first][0])
        return marks, out

    def _network_s(self) -> float:
        return self._engine.load().step_seconds_total["forward"]

    def prefill(self, prompt: list[int]) -> list[tuple[float, float]]:
        return loop.between(self._run([prompt], 1, 1)[0])

    def decode(self, prompts: list[list[int]], steps: int) -> list[tuple[float, float]]:
        # Prompts are computed together, or one after another; the last one joins at the latest
        # after as many steps as there are prompts.
        tokens = steps + len(prompts) + 2
        marks, _ = self._run(prompts, tokens, steps)
        return loop.between(marks[tokens - steps - 1 : tokens])

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        return self._run([prompt], tokens, 1)[1][0]

    def facts(self) -> dict[str, Any]:
        return {"torch": torch.__version__, "network_share": self._network_share}


if __name__ == "__main__":
    loop.serve(Ours)
