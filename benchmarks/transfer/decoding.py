"""The bundled engine, decoding while KV arrives in the same process."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.engine import peers
from benchmarks.engine.model import write_random
from disagg_protocol.events import Event, TokenEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig

_BUNDLED = Path(__file__).resolve().parents[2] / "models" / "stdlib-llama"
_LARGER = peers.cache() / "models" / "random-88m-bfloat16"
_PROMPT_TOKENS = 16
_WAIT_S = 120.0


@dataclass(frozen=True)
class Load:
    """The sequences that are decoded together, whose steps are short or of a realistic length."""

    sequences: int
    quiet_steps: int
    new_tokens: int
    cache_bytes: int


LOADS = {"bundled": Load(8, 200, 1900, 128 << 20), "larger": Load(32, 60, 280, 256 << 20)}


class Step(NamedTuple):
    """A step of the engine's thread, in seconds."""

    whole_s: float
    core_s: float
    """The wait for a core, while others had them all."""
    held_s: float
    """What is neither that nor computed: the wait for Python's interpreter or a lock."""


def _now() -> tuple[float, float, float]:
    """Return the time, and what this thread has computed and has waited for a core until now."""
    waited_ns = Path("/proc/thread-self/schedstat").read_text().split()[1]
    return time.monotonic(), time.thread_time(), int(waited_ns) / 1e9


def _step(before: tuple[float, ...], after: tuple[float, ...]) -> Step:
    whole_s, computed_s, core_s = (b - a for a, b in zip(before, after, strict=True))
    return Step(whole_s, core_s, max(0.0, whole_s - computed_s - core_s))


class Decoding:
    """An engine, and the times of the tokens of its first sequence."""

    def __init__(self, name: str) -> None:
        self._load = LOADS[name]
        model = _BUNDLED if name == "bundled" else write_random(_LARGER, torch.bfloat16)
        config = EngineConfig("m", "decode", kv_cache_bytes=self._load.cache_bytes, prefix_cache=False)
        self._engine = TorchEngine(model, config)

    def start(self) -> _Streams:
        """Return the streams once they have run undisturbed for a while."""
        streams = _Streams(self._engine, self._load)
        streams.await_tokens(self._load.sequences + self._load.quiet_steps)
        return streams


class _Streams:
    def __init__(self, engine: TorchEngine, load: Load) -> None:
        self._load = load
        self._changed = threading.Condition()
        self._seen: list[tuple[float, ...]] = []
        n = load.new_tokens
        sampling = SamplingParams(seed=1, max_new_tokens=n, temperature=0.0, min_tokens=n)
        prompts = [[1 + i + j for j in range(_PROMPT_TOKENS)] for i in range(load.sequences)]
        self._handles = [
            engine.generate(str(i), p, len(p), sampling, self._note if i == 0 else lambda _: None)
            for i, p in enumerate(prompts)
        ]

    def _note(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            now = _now()
            with self._changed:
                self._seen.append(now)
                self._changed.notify_all()

    def await_tokens(self, n: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._seen) >= n, _WAIT_S):
                raise TimeoutError(f"{len(self._seen)} of {n} tokens")

    def end(self, began_s: float) -> tuple[list[Step], list[Step]]:
        """End the streams, and return the steps before and after `began_s`."""
        for handle in self._handles:
            handle.cancel()
        with self._changed:
            seen = self._seen[self._load.sequences :]  # Before that the others are prefilled.
        steps = [(b[0], _step(a, b)) for a, b in pairwise(seen)]
        return [step for at, step in steps if at < began_s], [step for at, step in steps if at >= began_s]
