"""The bundled engine, decoding while KV arrives in the same process."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from pathlib import Path

from disagg_protocol.events import Event, TokenEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.engine_config import EngineConfig

_MODEL = Path(__file__).resolve().parents[2] / "models" / "stdlib-llama"
_SEQUENCES = 8
_QUIET_STEPS = 200
_NEW_TOKENS = 1900
_WAIT_S = 120.0


class Decoding:
    """Eight sequences that are decoded together, and the times of the tokens of the first."""

    def __init__(self) -> None:
        config = EngineConfig("m", "decode", kv_cache_bytes=128 << 20, prefix_cache=False)
        self._engine = TorchEngine(_MODEL, config)

    def start(self) -> _Streams:
        """Return the streams once they have run undisturbed for a while."""
        streams = _Streams(self._engine)
        streams.await_tokens(_QUIET_STEPS)
        return streams


class _Streams:
    def __init__(self, engine: TorchEngine) -> None:
        self._changed = threading.Condition()
        self._times_s: list[float] = []
        sampling = SamplingParams(seed=1, max_new_tokens=_NEW_TOKENS, temperature=0.0, min_tokens=_NEW_TOKENS)
        prompts = [[1 + i + j for j in range(16)] for i in range(_SEQUENCES)]
        self._handles = [
            engine.generate(str(i), p, len(p), sampling, self._note if i == 0 else lambda _: None)
            for i, p in enumerate(prompts)
        ]

    def _note(self, event: Event) -> None:
        if isinstance(event, TokenEvent):
            with self._changed:
                self._times_s.append(time.monotonic())
                self._changed.notify_all()

    def await_tokens(self, n: int) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._times_s) >= n, _WAIT_S):
                raise TimeoutError(f"{len(self._times_s)} of {n} tokens")

    def end(self, began_s: float) -> tuple[list[float], list[float]]:
        """End the streams, and return the steps before and after `began_s`, in seconds."""
        for handle in self._handles:
            handle.cancel()
        with self._changed:
            times_s = self._times_s[_SEQUENCES:]  # Before that the others are prefilled.
        gaps = [(b, b - a) for a, b in pairwise(times_s)]
        return [gap for at, gap in gaps if at < began_s], [gap for at, gap in gaps if at >= began_s]
