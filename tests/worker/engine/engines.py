"""Helpers of the engine tests: requests, a sender that keeps what it gets, and gates that hold the
engine's thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from tests.worker.collector import Collector

from disagg_protocol.events import ErrorEvent, TokenEvent
from disagg_protocol.sampling_params import SamplingParams
from disagg_worker.engine.core import TorchEngine
from disagg_worker.engine.steps import Steps
from disagg_worker.values.kv_blocks import KvBlocks

GREEDY = SamplingParams(seed=1, max_new_tokens=12, temperature=0.0)
RANDOM = SamplingParams(seed=5, max_new_tokens=12, temperature=0.9, top_p=0.9, presence_penalty=0.4)
# One block of 4 tokens of the tiny model in float32.
BLOCK_BYTES = 4 * 2 * 2 * 2 * 8 * 4
MAX_LEN_BLOCKS = 256 // 4
Make = Callable[..., TorchEngine]


def prompt(n: int, salt: int = 0) -> list[int]:
    return [(7 * i * i + 3 * i + salt) % 96 + 1 for i in range(n)]


def local(
    engine: TorchEngine, tokens: Sequence[int], sampling: SamplingParams = GREEDY, prompt_tokens: int | None = None
) -> list[int]:
    sink = Collector()
    engine.generate("r", tokens, prompt_tokens or len(tokens), sampling, sink)
    return sink.finished()


class Keeper:
    """A KvSender that keeps the bytes, and neither answers nor releases by itself."""

    def __init__(self) -> None:
        self.parts: dict[tuple[int, int], bytes] = {}
        self.reported: list[tuple[int, int]] = []
        self.first: TokenEvent | None = None
        self.aborted: list[str] = []

    @property
    def reads_region(self) -> bool:
        return False

    @property
    def held_blocks(self) -> int:
        return 0

    def layer_ready(self, layer: int, first_block: int, blocks: KvBlocks) -> None:
        with blocks.reading(layer) as views:
            for i, block in enumerate(views, first_block):
                self.reported.append((layer, i))
                self.parts[layer, i] = bytes(block)

    def commit(self, first_token: TokenEvent) -> None:
        self.first = first_token

    def abort(self, error: ErrorEvent) -> None:
        self.aborted.append(error.code)


class Gate:
    """Holds the engine's thread at its next decode step, so that a test can act while a request
    runs.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        original = Steps.decode

        def decode(steps: Steps, running: Any) -> Any:
            self.reached.set()
            if not self.open.wait(30):
                raise TimeoutError("the gate stayed shut")
            return original(steps, running)

        monkeypatch.setattr(Steps, "decode", decode)


class Turnstile:
    """Holds the engine's thread before each prefill step until a test lets it make one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reached = threading.Event()
        self._turns = threading.Semaphore(0)
        original = Steps.prefill

        def prefill(steps: Steps, work: Any) -> Any:
            self.reached.set()
            if not self._turns.acquire(timeout=30):
                raise TimeoutError("no turn came")
            return original(steps, work)

        monkeypatch.setattr(Steps, "prefill", prefill)

    def let(self, steps: int) -> None:
        """Allow this many more steps."""
        self._turns.release(steps)
